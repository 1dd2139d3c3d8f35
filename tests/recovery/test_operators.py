"""What operators and outages do is held and named; what is parked says so where people look."""

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from evosaga.events.commands import read_command
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.model import Recorded
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.cli.doctor_secret_keys import check_secret_keys
from evosaga.orchestrator.commands.accept import accept, parse_request
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine import retries
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.definition import Retry
from evosaga.sagas.outcome import Outcome, Rejected
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from evosaga.sagas.whatsapp.services import Context, Services
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually

ANOTHER_KEY = SecretStr("another-secret-key-of-thirty-two-bytes")


def with_notify(do: Any) -> SagaRegistry:
    """The sagas, with a create whose notices (a retryable step) are that function's."""

    def changed(saga: Any) -> Any:
        if saga.name != "create-integration":
            return saga
        steps = (
            replace(step, do=do, retry=Retry(attempts=1, first=0.05)) if s == "notify" else step
            for s, step in ((step.name, step) for step in saga.steps)
        )
        return replace(saga, steps=tuple(steps))

    return registry_of(changed(saga) for saga in discover().versions.values())


async def test_a_worker_with_another_secret_key_holds_what_others_began_and_they_finish_it(
    settings: Settings, pool: Pool, services: Services
) -> None:
    command = create()
    request = parse_request(discover(), read_command(json.dumps(command).encode()))
    await accept(pool, services, None, [request])
    wrong = settings.model_copy(update={"secret_key": ANOTHER_KEY})
    found: list[SagaView] = []

    async def held() -> bool:
        view = await find_saga(pool, command["id"])
        found[:] = [view] if view and view.code == "secret_key_unknown" else []
        return bool(found)

    with capture_logs() as logged:
        async with running_worker(wrong):
            await eventually(held, 60)
            told = await why_of(pool, discover(), found[0], explainer())
            findings = [one async for one in check_secret_keys(pool, wrong)]
            async with running_worker(settings):
                done = await outcome(pool, command["id"], 60)
    assert done.status == "completed"
    events = [r.event for r in await history(pool, done.saga_id)]
    assert {e.attempt for e in events if hasattr(e, "attempt")} == {1}, "no attempt was burned"
    key = services.keys.current
    assert f"made under secret key {key}" in told.headline
    assert told.cure is not None
    assert "EVOSAGA_SECRET_KEY" in told.cure
    [finding] = findings
    assert finding.verdict == "bad"
    assert key in finding.said
    [said] = [line for line in logged if line["event"] == "secret key unknown"]
    assert key in said["message"]
    assert [one async for one in check_secret_keys(pool, settings)] == []


async def test_a_saga_that_is_parked_writes_an_error_to_the_log_and_an_event(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async def refuse(_: Context) -> Outcome:
        return Rejected("no_such_number", "nobody takes such notices")

    command = create()
    with capture_logs() as logged:
        async with running_worker(settings, with_notify(refuse)):
            done = await outcome(pool, await publish(redis, command), 60)
    assert done.status == "failed"
    [line] = [one for one in logged if one["event"] == "saga parked"]
    assert line == {
        "event": "saga parked",
        "log_level": "error",
        "saga_id": str(done.saga_id),
        "saga": "create-integration",
        "step": "notify",
        "direction": "forward",
        "code": "no_such_number",
        "organization_id": command["data"]["organization_id"],
        "message": "nobody takes such notices",
    }
    assert (await history(pool, done.saga_id))[-1].event.type == "saga.failed"


async def test_a_saga_that_is_parked_when_it_is_taken_over_says_so_as_well(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "LOSSES", 1)

    async def deadly(_: Context) -> Outcome:
        await pool.execute("UPDATE evosaga.sagas SET owner = 'somebody who is dead'")
        await eventually(parked, 60)
        return Rejected("too_late", "it was taken over")

    async def parked() -> bool:
        return bool(await pool.fetchval("SELECT status = 'failed' FROM evosaga.sagas"))

    known = with_notify(deadly)
    with capture_logs() as logged:
        async with running_worker(settings, known):
            id_ = await publish(redis, create())
            async with running_worker(settings, known):
                await outcome(pool, id_, 60)
    lines = [one for one in logged if one["event"] == "saga parked"]
    assert [(line["saga_id"], line["code"]) for line in lines] == [(id_, "worker_lost")]


async def test_an_outage_while_a_saga_reads_its_history_is_waited_out_and_no_stumble(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, refused = EventLog.read, 0

    async def read(self: EventLog, saga_id: Any) -> list[Recorded]:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise ConnectionRefusedError
        return await genuine(self, saga_id)

    async def conflict(_: Context) -> Outcome:
        # A cancel that comes too late makes the append that follows look at the history anew.
        if not refused:
            monkeypatch.setattr(EventLog, "read", read)
            await pool.execute(_LATE_CANCEL)
        return Rejected("over", "that was all")

    with capture_logs() as logged:
        async with running_worker(settings, with_notify(conflict)):
            done = await outcome(pool, await publish(redis, create()), 60)
    assert refused == 3
    assert done.status == "failed"
    assert done.code == "over"
    assert [
        line for line in logged if line["event"] in ("saga_quarantined", "saga set aside")
    ] == []


async def test_a_step_that_raises_because_something_is_away_burns_no_attempt(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    away = [ConnectionRefusedError(), OSError("Multiple exceptions")]

    async def reach(_: Context) -> Outcome:
        if away:
            raise away.pop()
        return Rejected("over", "that was all")

    async with running_worker(settings, with_notify(reach)):
        done = await outcome(pool, await publish(redis, create()), 60)
    assert done.code == "over", "its only attempt was left"
    told: list[Any] = [r.event for r in await history(pool, done.saga_id)]
    held = [e for e in told if getattr(e, "outcome", None) == "held"]
    assert {e.code for e in held} == {"dependency_unreachable"}


async def test_a_step_that_raises_for_a_missing_file_is_still_a_fault(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async def stumble(_: Context) -> Outcome:
        raise FileNotFoundError("nothing passes here")

    async with running_worker(settings, with_notify(stumble)):
        done = await outcome(pool, await publish(redis, create()), 60)
    assert (done.status, done.code) == ("failed", "exception")


_LATE_CANCEL = """
WITH moved AS (UPDATE evosaga.sagas SET next_sequence = next_sequence + 1
               RETURNING saga_id, next_sequence - 1 AS sequence)
INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
SELECT saga_id, sequence, 'saga.cancel_requested', '{"by": "a person"}', 'c' FROM moved
"""
