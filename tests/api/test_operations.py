"""For those who run it: liveness, readiness, metrics, and the documents that teach the API."""

import asyncio
import json
import re
from html.parser import HTMLParser
from typing import Any

import asyncpg
import httpx
import pytest
from jsonschema_rs import Draft202012Validator

from evosaga.events import streams
from evosaga.orchestrator.api.asyncapi import document
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.problems import TITLES
from evosaga.orchestrator.api.server import parts_alone
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.sagas.registry import discover
from tests.api.conftest import CREATE, OPERATOR, asked, client_with, problem, served
from tests.support.driving import create, entries, outcome, publish
from tests.support.waiting import eventually


async def test_alive_and_ready_without_a_key(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/healthz")).json() == {"status": "alive"}
    ready = await nobody.get("/readyz")
    assert ready.status_code == 200
    told = ready.json()
    assert told["ready"] is True
    assert set(told["checks"]) == {"postgres", "schema", "redis", "consumers", "worker"}
    assert all(check["ok"] for check in told["checks"].values())
    for path in ("/healthz", "/readyz"):  # as many load balancers ask
        head = await nobody.head(path)
        assert (head.status_code, head.content) == (200, b"")


async def test_it_stays_ready_where_the_log_went_back_and_says_so(
    nobody: httpx.AsyncClient, parts: AppContext
) -> None:
    went_back = "UPDATE evosaga.relay SET went_back_at = {}, went_back = {}"
    await parts.pool.execute(went_back.format("now()", "'{}'"))
    try:
        ready = await nobody.get("/readyz")
        assert ready.status_code == 200, "commands are taken and committed all the same"
        check = ready.json()["checks"]["log_went_back"]
        assert check == {"ok": False, "needed": False, "said": "the log went back"}
    finally:
        await parts.pool.execute(went_back.format("NULL", "NULL"))


async def red(client: httpx.AsyncClient, check: str) -> str:
    """Wait until that check is red, and the whole with it; what it says."""
    said: list[str] = []

    async def is_red() -> bool:
        answer = await client.get("/readyz")
        found = answer.json()["checks"][check]
        if found["ok"]:
            return False
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        said[:] = [found["said"]]
        return True

    await eventually(is_red, 20)
    return said[0]


async def green(client: httpx.AsyncClient) -> None:
    async def is_green() -> bool:
        return (await client.get("/readyz")).status_code == 200

    await eventually(is_green, 20)


async def test_a_dead_consumer_makes_it_red_until_it_is_back(
    nobody: httpx.AsyncClient, parts: AppContext
) -> None:
    assert parts.reader is not None
    for subscriber in parts.reader._subscribers:
        await subscriber.stop()
        assert "stopped" in await red(nobody, "consumers")
        await green(nobody)  # the reader's watchdog has started it again


async def test_a_part_of_the_worker_that_ended_makes_it_red(
    nobody: httpx.AsyncClient, parts: AppContext
) -> None:
    assert parts.failed is not None
    parts.failed.set_exception(RuntimeError("the relay ended"))
    assert "ended" in await red(nobody, "worker")
    parts.failed.exception()


async def test_a_schema_of_another_release_makes_it_red(
    nobody: httpx.AsyncClient, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE evosaga.alembic_version SET version_num = '0000'")
    assert "evosaga migrate" in await red(nobody, "schema")
    await connection.execute("DROP TABLE evosaga.alembic_version")
    assert "evosaga migrate" in await red(nobody, "schema")
    await connection.close()


async def test_metrics_tell_numbers_and_no_names(
    operator: httpx.AsyncClient, nobody: httpx.AsyncClient
) -> None:
    made = (await operator.post(CREATE, json=asked())).json()
    await operator.post(CREATE, json=asked())
    await operator.get(f"/sagas/{made['saga_id']}")
    await operator.get("/no/such/route")
    answer = await operator.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    told = answer.text
    for line in (
        'evosaga_sagas{status="completed"} 1.0',
        'evosaga_sagas{status="rejected"} 1.0',
        'evosaga_integrations{status="deleting"} 0.0',
        'evosaga_evolution_breaker{server="default",state="closed"} 1.0',
        'evosaga_evolution_breaker{server="default",state="open"} 0.0',
        "evosaga_postgres_up 1.0",
        "evosaga_redis_up 1.0",
        "evosaga_workers 1.0",
        "evosaga_commands_dead 0.0",
        "evosaga_consumers_healthy 1.0",
        'evosaga_http_request_seconds_count{method="POST",route="/integrations/evolution/create",'
        'status="201"} 1.0',
        'evosaga_http_request_seconds_count{method="GET",route="/sagas/{saga_id}",'
        'status="200"} 1.0',
        'evosaga_http_request_seconds_count{method="GET",route="none",status="404"} 1.0',
    ):
        assert line in told, line
    assert {"evosaga_relay_lag_events", "evosaga_oldest_active_seconds"} <= {
        line.split(" ")[0] for line in told.splitlines()
    }
    for secret in (made["saga_id"], made["instance_name"], OPERATOR, asked()["organization_id"]):
        assert secret not in told
    assert (await nobody.get("/metrics")).status_code == 401


async def test_without_redis_http_goes_on_and_says_what_is_missing(
    settings: Settings, own_valkey: LocalServer
) -> None:
    """Commands are accepted in Postgres; only what needs Redis waits for it."""
    given = settings.model_copy(update={"redis_url": own_valkey.url})
    await asyncio.to_thread(own_valkey.kill)
    async with (
        parts_alone(given) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        answer = await client.post(f"{CREATE}?wait=0", json=asked())
        assert answer.status_code == 202
        assert (await client.get(answer.headers["location"])).json()["status"] == "running"
        command = create()
        assert (await client.post("/commands", json=command)).status_code == 202
        assert "does not answer" in await red(client, "redis")
        told = (await client.get("/metrics")).text
        assert "evosaga_redis_up 0.0" in told
        assert 'evosaga_sagas{status="running"} 2.0' in told


async def test_with_a_worker_beside_it_a_create_is_accepted_while_redis_is_down_and_completed_after(
    settings: Settings, own_valkey: LocalServer
) -> None:
    from evosaga.orchestrator.api.server import parts_with_worker

    given = settings.model_copy(update={"redis_url": own_valkey.url})
    async with (
        parts_with_worker(given) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        await asyncio.to_thread(own_valkey.kill)
        answer = await client.post(f"{CREATE}?wait=0", json=asked())
        assert answer.status_code == 202
        saga = (await client.get(answer.headers["location"])).json()
        assert saga["status"] == "running"
        await asyncio.to_thread(own_valkey.start_again)
        assert (await outcome(parts.pool, saga["saga_id"], 40)).status == "completed"
        await green(client)


async def test_without_postgres_it_is_503_with_a_time_to_come_back(
    settings: Settings, own_postgres: LocalServer, evolution: object
) -> None:
    from evosaga import migrations

    await migrations.migrate(own_postgres.url)
    given = settings.model_copy(update={"database_url": own_postgres.url})
    async with (
        parts_alone(given) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        assert (await client.get("/sagas")).status_code == 200
        await asyncio.to_thread(own_postgres.kill)
        requests: list[tuple[str, str, Any]] = [
            ("GET", "/sagas", None),
            ("GET", "/integrations", None),
            ("GET", "/sagas/x", None),
            ("POST", CREATE, asked()),
            ("DELETE", "/integrations/evolution/wa-somebody", None),
            ("POST", "/commands", create()),
            ("POST", "/sagas/x/replay", None),
        ]
        for method, path, body in requests:
            answer = await client.request(method, path, json=body)
            assert answer.status_code == 503, (path, answer.text)
            assert problem(answer)["code"] == "unavailable"
            assert int(answer.headers["retry-after"]) > 0
            assert str(own_postgres.url) not in answer.text
        assert (await client.get("/healthz")).status_code == 200
        assert "does not answer" in await red(client, "postgres")
        assert "evosaga_postgres_up 0.0" in (await client.get("/metrics")).text
        await asyncio.to_thread(own_postgres.start_again)
        await green(client)
        assert (await client.post(f"{CREATE}?wait=0", json=asked())).status_code == 202


# --- documents --------------------------------------------------------------------------------


class Loads(HTMLParser):
    """What a page would load, and whether it holds anything that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "style", "iframe"):
            self.loaded.append(tag)
        self.loaded += [str(given[name]) for name in ("src",) if name in given]
        if tag == "link":
            self.loaded.append(str(given["href"]))
        assert not any(name.startswith("on") or name == "style" for name in given)
        if given.get("id"):
            self.ids.add(str(given["id"]))


async def test_the_docs_need_nothing_from_elsewhere_and_name_every_route_and_problem(
    nobody: httpx.AsyncClient,
) -> None:
    answer = await nobody.get("/docs")
    page = Loads()
    page.feed(answer.text)
    assert page.loaded == ["/docs.css"]
    assert "<th></th>" not in answer.text, "a screen reader reads each column's header"
    assert (await nobody.get("/docs.css")).headers["content-type"].startswith("text/css")
    assert "style-src 'self'" in answer.headers["content-security-policy"]
    assert set(TITLES) <= page.ids
    openapi = (await nobody.get("/openapi.json")).json()
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            assert operation["operationId"] in page.ids, path


async def test_every_route_is_documented_with_an_example(nobody: httpx.AsyncClient) -> None:
    openapi = (await nobody.get("/openapi.json")).json()
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            codes = set(operation["responses"])
            assert any(code.startswith("2") for code in codes), where
            if operation.get("security"):
                assert "401" in codes, where
            for code, response in operation["responses"].items():
                if code.startswith(("4", "5")) and path not in ("/readyz",):
                    assert "application/problem+json" in response["content"], (where, code)
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                schema = content["schema"] | {"components": openapi["components"]}
                Draft202012Validator(schema).validate(content["example"])


async def test_every_reference_of_the_asyncapi_document_leads_somewhere(
    nobody: httpx.AsyncClient,
) -> None:
    told = (await nobody.get("/asyncapi.json")).json()
    assert told["asyncapi"] == "3.0.0"
    assert {channel["address"] for channel in told["channels"].values()} >= {
        streams.COMMANDS,
        streams.DEAD_COMMANDS,
        streams.EVENTS,
        wa_events.STREAM,
        "wa:instances:added",
        "wa:instances:removed",
    }
    for reference in re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(told)):
        place: Any = told
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place
    assert "http" not in json.dumps(told).replace("https://json-schema.org", "")


async def test_what_goes_over_the_streams_is_what_the_asyncapi_document_says(
    operator: httpx.AsyncClient, parts: AppContext
) -> None:
    messages = document(discover())["components"]["messages"]
    by_type = {message["name"]: message["payload"] for message in messages.values()}
    made = (await operator.post(CREATE, json=asked())).json()
    await operator.post(CREATE, json=asked())
    await operator.delete(f"/integrations/evolution/{made['instance_name']}")
    command = create()
    Draft202012Validator(by_type["integration.create"]).validate(command)
    await publish(parts.redis, command)
    await outcome(parts.pool, command["id"])

    async def all_told() -> bool:
        said = [json.loads(f[b"data"]) for _, f in await entries(parts.redis, streams.EVENTS)]
        return [event["type"] for event in said].count("saga.completed") == 3

    await eventually(all_told)
    seen = set()
    for _, fields in await entries(parts.redis, streams.EVENTS):
        event = json.loads(fields[b"data"])
        Draft202012Validator(by_type[event["type"]]).validate(event)
        seen.add(event["type"])
    assert seen >= {"saga.started", "saga.rejected", "step.succeeded", "saga.completed"}


@pytest.mark.parametrize("wrong", [{"name": ""}, {"organization_id": 1}, {"extra": True}])
async def test_the_documented_commands_are_as_strict_as_ours(wrong: dict[str, Any]) -> None:
    payload = document(discover())["components"]["messages"]["integrationCreate"]["payload"]
    assert not Draft202012Validator(payload).is_valid(create(**wrong))
