"""A saga is a trace and an attempt is a span, made from events, whoever carried them out."""

import importlib.util
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import structlog
from aiohttp import web
from redis.asyncio import Redis

from evosaga.events import streams, trace_context
from evosaga.events.database import Pool
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.log_config import trace_ids
from evosaga.orchestrator.config.settings import Settings, SettingsError
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance import tracing
from evosaga.orchestrator.maintenance.tracing.spans import StoredEvent, spans_of
from tests.api.conftest import API_KEYS, CREATE, OPERATOR, asked, client_with, served
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = GIVEN.split("-")[1:3]


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "x",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"{GIVEN}-more",
        GIVEN.upper(),
        GIVEN + "0" * 300,
        7,
        None,
    ],
)
def test_a_traceparent_that_is_garbage_is_left_out(garbage: Any) -> None:
    assert trace_context.valid(garbage) is None


def test_a_traceparent_of_a_later_version_is_read() -> None:
    later = GIVEN.replace("00-", "cc-", 1) + "-more"
    assert trace_context.read(later) == trace_context.SpanPlace(TRACE, PARENT)


def history(*events: tuple[str, dict[str, Any]]) -> list[StoredEvent]:
    """A second between two of them."""
    id_, at = uuid.UUID(int=7), datetime(2026, 1, 1, tzinfo=UTC)
    return [
        StoredEvent(id_, number, type_, data, at + timedelta(seconds=number))
        for number, (type_, data) in enumerate(events)
    ]


def test_a_trace_survives_the_worker_that_began_it() -> None:
    told = history(
        ("saga.started", {"saga": "room.book", "facts": {"traceparent": GIVEN}}),
        ("step.started", {"step": "charge", "attempt": 1, "worker": "one"}),
        ("step.failed", {"step": "charge", "outcome": "unknown", "code": "worker_lost"}),
        ("step.started", {"step": "charge", "attempt": 2, "worker": "two"}),
        ("step.succeeded", {"step": "charge", "attempt": 2}),
        ("saga.completed", {}),
    )
    spans = spans_of(told, {1, 2, 3, 4, 5})
    lost, done, whole = spans
    assert {span.place.trace_id for span in spans} == {TRACE}
    assert [lost.attributes["evosaga.worker"], done.attributes["evosaga.worker"]] == ["one", "two"]
    assert (lost.failed, done.failed, whole.failed) == (True, False, False)
    assert lost.attributes["evosaga.code"] == "worker_lost"
    assert lost.parent == done.parent == whole.place
    assert whole.parent == trace_context.SpanPlace(TRACE, PARENT)
    assert (whole.began, whole.ended) == (told[0].at, told[5].at)
    assert spans_of(told, {4}) == [done], "told in two goes, they are the same"


def test_a_saga_that_nobody_traced_has_a_trace_of_its_own() -> None:
    told = history(("saga.started", {"saga": "s", "facts": {}}), ("saga.completed", {}))
    [whole] = spans_of(told, {0, 1})
    assert whole.place.trace_id == uuid.UUID(int=7).hex
    assert whole.parent is None


def test_a_history_without_a_beginning_has_no_spans() -> None:
    assert spans_of([], {0}) == []
    assert spans_of(history(("of.a.newer.release", {})), {0}) == []


def test_nothing_configured_is_nothing_asked_for() -> None:
    assert not tracing.configured({})
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}
    assert not tracing.configured(off)


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", *tracing.LIBRARIES.values()])
def test_an_extra_that_is_missing_is_said_in_one_sentence(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else 1)
    with pytest.raises(SettingsError, match=rf"{missing} .*pip install 'evosaga\[otel\]'"):
        tracing.configured(named)
    if missing != "opentelemetry.sdk":  # who does without it need not have it
        all_off = named | {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ", ".join(tracing.LIBRARIES)}
        assert tracing.configured(all_off)


def test_instrumentation_is_switched_off_by_opentelemetrys_own_variable() -> None:
    off = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
    assert tracing.instrumentations({}) == {"asyncpg", "fastapi", "faststream", "httpx"}
    assert tracing.instrumentations({off: "asyncpg, flask"}) == {"fastapi", "faststream", "httpx"}
    assert tracing.instrumentations({off: "*"}) == set()


def test_a_span_of_a_library_leaves_without_anything_that_could_be_a_secret() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from evosaga.orchestrator.maintenance.tracing.exporting import CleanExporter

    provider, sent = sdk.TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(CleanExporter(sent)))
    secret, phone = "s3cr3t", "5511987654321"
    with (
        pytest.raises(ValueError, match=secret),
        provider.get_tracer("x").start_as_current_span(
            "INSERT",
            attributes={
                "db.statement": f"INSERT INTO t VALUES ($1, '{secret} it''s', $q${secret}$q$, "
                f"E'\\'{secret}', 'C:\\', '{secret}', \"it's\", '{secret}', t1, {phone}) "
                f"-- don't {secret}\n/* can't */ RETURNING '{secret}",
                "db.statement.parameters": secret,
                "url.full": f"http://x/webhooks/evolution?token={secret}",
                "http.request.header.apikey": (secret,),
                "server.address": "db",
            },
        ),
    ):
        raise ValueError(secret)
    [span] = sent.get_finished_spans()
    assert dict(span.attributes or {}) == {
        "db.statement": 'INSERT INTO t VALUES ($1, ?, ?, ?, ?, ?, "it\'s", ?, t1, ?) ?\n? '
        "RETURNING ?",
        "server.address": "db",
    }
    assert not [one for one in (secret, phone) if one in span.to_json()]


@dataclass
class Collector:
    """Takes traces over OTLP/HTTP."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    refused: str = ""
    """A request with a span of this name is answered with 400."""

    async def take(self, request: web.Request) -> web.Response:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

        told = trace_service_pb2.ExportTraceServiceRequest()
        told.ParseFromString(await request.read())
        spans = [
            one for of in told.resource_spans for scope in of.scope_spans for one in scope.spans
        ]
        if any(one.name == self.refused for one in spans):
            return web.Response(status=400)
        self.spans += spans
        return web.Response(content_type="application/x-protobuf")

    def one(self, trace: str, name: str) -> Any:
        """The first span of that name in the trace."""
        return next(s for s in self.spans if (s.trace_id.hex(), s.name) == (trace, name))

    def names(self, trace: str) -> list[str]:
        return [span.name for span in self.spans if span.trace_id.hex() == trace]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")
    stub, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", stub.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stub.url)
    yield stub
    await runner.cleanup()


async def test_one_trace_leads_from_http_through_all_steps_to_evolution_and_postgres(
    collector: Collector, settings: Settings, pool: Pool, redis: Redis
) -> None:
    pytest.importorskip("opentelemetry.instrumentation.httpx", reason="the extra otel")
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    keyed = Settings.model_validate(settings.model_dump() | {"api_keys": API_KEYS})
    # A follower that is new begins with what comes from then on.
    await pool.execute("INSERT INTO evosaga.receivers (name, last_event) VALUES ('otel', '0-0')")
    async with (
        parts_with_worker(keyed) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        phone = {"number": "5511987654321"}
        with suppress_instrumentation():  # the caller is another program
            made = await client.post(CREATE, json=asked(**phone), headers={"traceparent": GIVEN})
        assert made.status_code == 201
        plain = await publish(redis, create() | {"traceparent": "garbage"})
        assert (await outcome(pool, plain)).status == "completed"
        own = uuid.UUID(plain).hex

        def whole(trace: str) -> bool:
            return "create-integration" in collector.names(trace)

        await eventually(lambda: whole(TRACE) and whole(own), 20, message="both traces")
    steps = {name.split(" ")[1] for name in collector.names(TRACE) if " " in name}
    assert {"evolution", "row", "cache"} <= steps or len(steps) >= 4, steps
    request = collector.one(TRACE, f"POST {CREATE}")
    assert request.parent_span_id.hex() == PARENT
    root = collector.one(TRACE, "create-integration")
    assert root.parent_span_id == request.span_id
    attempt = collector.one(TRACE, "create-integration evolution")
    assert attempt.parent_span_id == root.span_id
    assert collector.one(TRACE, "POST /instance/create").parent_span_id == attempt.span_id
    assert collector.one(own, "POST /instance/create").parent_span_id.hex()
    below = {span.parent_span_id for span in collector.spans if span.name == "SELECT"}
    assert request.span_id in below, "queries of a request are below it"
    assert "evosaga:commands process" in {span.name for span in collector.spans}
    known = {span.span_id for span in collector.spans} | {bytes.fromhex(PARENT)}
    lost = {span.name for span in collector.spans if span.parent_span_id not in {b"", *known}}
    assert not lost, "each is below one that was sent, too"
    upkeep = [s for s in collector.spans if not s.parent_span_id and s.name.isupper()]
    assert not upkeep, "what no saga and no request caused is not sent"
    assert settings.evolution_api_key is not None
    key = settings.evolution_api_key.get_secret_value()
    for secret in (
        OPERATOR,
        key,
        phone["number"],
        "apikey",
        "Bearer",
        made.json()["instance_name"],
    ):
        assert not [s for s in collector.spans if secret in str(s)], secret
    assert tracing.running is None
    assert not hasattr(asyncpg.Connection.fetch, "__wrapped__"), "as it was before"
    entries: Any = await redis.xrange(streams.EVENTS)
    told = [entry[1][b"data"].decode() for entry in entries]
    assert any(f'"traceparent":"00-{TRACE}-' in one for one in told)
    assert any(f'"traceparent":"00-{own}-' in one for one in told)
    assert not any("garbage" in one for one in told)


async def test_a_span_that_is_refused_for_good_keeps_no_other_from_the_collector(
    collector: Collector, settings: Settings, pool: Pool, redis: Redis
) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource

    from evosaga.orchestrator.maintenance.tracing.follower import TraceFollower, _Refused

    await pool.execute("INSERT INTO evosaga.receivers (name, last_event) VALUES ('otel', '0-0')")
    collector.refused = "create-integration notify"  # by the worker's follower as well
    async with running_worker(settings):
        for _ in range(2):
            assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        await eventually(lambda: events_of(redis, "saga.completed", 2), 20)
    follower = TraceFollower(pool, redis, "me")
    given = OTLPSpanExporter(), Resource.create({"service.name": "evosaga"})
    for _ in range(2):
        with pytest.raises(_Refused):  # it may be the collector that is ill
            await follower.take(*given)
    await follower.take(*given)
    names = [span.name for span in collector.spans]
    assert names.count("create-integration") == 2
    assert names.count("create-integration evolution") == 2
    assert "create-integration notify" not in names
    last = await pool.fetchval("SELECT last_event FROM evosaga.receivers WHERE name = 'otel'")
    assert last != "0-0", "it goes on behind them"


async def events_of(redis: Redis, type_: str, count: int) -> bool:
    """Whether so many events of the type are on the stream."""
    entries: Any = await redis.xrange(streams.EVENTS)
    return sum(f'"type":"{type_}"' in entry[1][b"data"].decode() for entry in entries) == count


async def test_log_lines_of_a_saga_carry_its_ids_and_those_of_the_trace_it_was_given(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    seen: list[dict[str, Any]] = []

    def note(logger: Any, method: str, line: Any) -> Any:
        seen.append(dict(trace_ids(logger, method, dict(line))))
        raise structlog.DropEvent

    old = structlog.get_config()
    evolution.arm("reject", operation="create", times=None, message="Invalid integration")
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, note], cache_logger_on_first_use=False
    )
    try:
        async with running_worker(settings):
            traced = await publish(redis, create() | {"traceparent": GIVEN})
            plain = await publish(redis, create())
            for one in (traced, plain):
                assert (await outcome(pool, one)).status == "compensated"
    finally:
        structlog.configure(**old)
    [mine] = [one for one in seen if one.get("saga_id") == traced and one.get("step")]
    assert mine["trace_id"] == TRACE
    claim = await pool.fetchval(
        "SELECT sequence FROM evosaga.saga_events WHERE saga_id = $1 AND type = 'step.started' "
        "AND data ->> 'step' = 'evolution'",
        uuid.UUID(traced),
    )
    assert mine["span_id"] == trace_context.span_id(f"{traced}:{claim}")
    assert not any("trace_id" in one for one in seen if one.get("saga_id") == plain)
