"""Looking at sagas and steering them over HTTP."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import parts_alone, parts_with_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import CREATE, OPERATOR, OURS, asked, client_with, problem, served
from tests.support.driving import contradictions, delete, entries, impatient, outcome, publish
from tests.support.waiting import eventually


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    """With little patience, so that a saga is parked soon."""
    async with parts_with_worker(settings, impatient(1)) as parts:
        yield parts


async def parked(client: httpx.AsyncClient, evolution: SimulatedEvolution) -> tuple[str, str]:
    """An instance, and the saga that could not delete it and is parked."""
    name = (await client.post(CREATE, json=asked())).json()["instance_name"]
    evolution.arm("5xx_before", operation="delete", times=None)
    answer = await client.delete(f"/integrations/evolution/{name}")
    evolution.disarm()
    return name, str(problem(answer)["saga_id"])


async def test_pages_follow_each_other_without_gaps_and_the_filters_narrow_them(
    operator: httpx.AsyncClient, pool: Pool
) -> None:
    organizations = [str(uuid.uuid4()) for _ in range(7)]
    made = [
        (await operator.post(f"{CREATE}?wait=0", json=asked(organization_id=one))).json()
        for one in organizations
    ]
    for one in made:
        await outcome(pool, one["saga_id"])
    for path, field, id_ in (
        ("/sagas", "sagas", "saga_id"),
        ("/integrations", "integrations", "integration_id"),
    ):
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            asked_for = f"{path}?limit=3" + (f"&cursor={cursor}" if cursor else "")
            page = (await operator.get(asked_for)).json()
            assert len(page[field]) <= 3
            seen += [row[id_] for row in page[field]]
            cursor = page["cursor"]
        assert len(seen) == len(set(seen)) == 7
        assert set(seen) == {one["saga_id"] for one in made}

    async def ids(**query: str) -> list[str]:
        answer = await operator.get("/sagas", params=query)
        return [row["saga_id"] for row in answer.json()["sagas"]]

    first = made[0]
    assert (await ids(organization_id=organizations[0])) == [first["saga_id"]]
    assert (await ids(instance_name=first["instance_name"])) == [first["saga_id"]]
    assert len(await ids(status="completed", saga="create-integration")) == 7
    assert await ids(status="failed") == []
    assert await ids(saga="delete-integration") == []
    newest = (await operator.get(f"/sagas/{made[-1]['saga_id']}")).json()
    assert await ids(since=newest["created_at"]) == [newest["saga_id"]]
    assert await ids(since="9999-12-31T23:59:59+00:00") == []
    assert len(await ids(since="0001-01-01T00:00:00")) == 7


async def test_a_saga_is_found_by_its_id_its_command_and_its_instance(
    operator: httpx.AsyncClient,
) -> None:
    made = (
        await operator.post(CREATE, json=asked(), headers={"Idempotency-Key": "order-17"})
    ).json()
    told = [
        (await operator.get(f"/sagas/{reference}")).json()
        for reference in (made["saga_id"], "order-17", made["instance_name"])
    ]
    assert told[0] == told[1] == told[2]
    assert (told[0]["status"], told[0]["over"], told[0]["command_id"]) == (
        "completed",
        True,
        "order-17",
    )


async def test_the_events_are_those_of_the_stream_to_the_letter(
    operator: httpx.AsyncClient, redis: Redis
) -> None:
    saga = (await operator.post(CREATE, json=asked(number="5511987654321"))).json()["saga_id"]

    async def published() -> list[Any]:
        told = [json.loads(fields[b"data"]) for _, fields in await entries(redis, "evosaga:events")]
        return [event for event in told if event["subject"] == saga]

    async def complete() -> bool:
        told = await published()
        return bool(told) and told[-1]["type"] == "saga.completed"

    await eventually(complete)
    answer = await operator.get(f"/sagas/{saga}/events")
    assert answer.json() == {"events": await published(), "cursor": None}
    assert "5511987654321" not in answer.text
    page = (await operator.get(f"/sagas/{saga}/events?limit=2")).json()
    assert [event["id"] for event in page["events"]] == [f"{saga}:0", f"{saga}:1"]
    rest = (await operator.get(f"/sagas/{saga}/events?cursor={page['cursor']}")).json()
    assert page["events"] + rest["events"] == answer.json()["events"]


async def test_a_command_over_http_is_a_command(
    operator: httpx.AsyncClient, pool: Pool, redis: Redis
) -> None:
    command: dict[str, Any] = {"id": str(uuid.uuid4()), "type": "integration.create"}
    command |= {"data": asked()}
    answer = await operator.post("/commands", json=command)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/sagas/{command['id']}"
    # The same command over the stream, which is slower, is known by then.
    await publish(redis, command)
    again = await operator.post("/commands", json=command | {"source": "elsewhere"})
    assert again.json()["saga_id"] == command["id"]
    assert (await outcome(pool, command["id"])).status == "completed"
    other = await operator.post("/commands", json=command | {"data": asked(name="Luna")})
    assert (other.status_code, problem(other)["code"]) == (409, "conflicting_duplicate")
    duplicate = await operator.post("/commands", json=command | {"id": str(uuid.uuid4())})
    assert (duplicate.status_code, duplicate.json()["status"]) == (202, "rejected")


async def test_an_organization_deletes_its_own_with_a_command_that_does_not_say_whose(
    ours: httpx.AsyncClient, pool: Pool
) -> None:
    name = (await ours.post(CREATE, json=asked())).json()["instance_name"]
    command = delete(name)
    for _ in range(2):
        answer = await ours.post("/commands", json=command)
        assert answer.status_code == 202
    saga = await outcome(pool, command["id"])
    assert (saga.status, saga.organization_id) == ("completed", OURS)


async def test_a_parked_saga_is_explained_planned_and_replayed(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    name, saga = await parked(operator, evolution)
    why = (await operator.get(f"/sagas/{saga}/why")).json()
    assert why["saga_id"] == saga
    assert why["headline"]
    plan = (await operator.get(f"/sagas/{saga}/replay-plan")).json()
    assert (plan["allowed"], plan["saga_id"], plan["anew"]) == (True, saga, False)
    actions = {step["step"]: step["action"] for step in plan["steps"]}
    assert actions["mark"] == "reuse"
    assert actions["evolution"] == "redo"
    assert all(step["evidence"] for step in plan["steps"])

    key = {"Idempotency-Key": str(uuid.uuid4())}
    answers = [
        await operator.post(f"/sagas/{saga}/replay", json={"reason": "mended"}, headers=key)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].headers["location"] == f"/sagas/{saga}"
    assert (await outcome(pool, saga)).status == "completed"
    events = (await operator.get(f"/sagas/{saga}/events")).json()["events"]
    (resumed,) = [event for event in events if event["type"] == "saga.resumed"]
    assert resumed["data"]["reason"] == "mended"
    assert name not in evolution.rows()
    again = await operator.post(f"/sagas/{saga}/replay")
    assert (again.status_code, problem(again)["code"]) == (409, "not_replayable")
    refused = (await operator.get(f"/sagas/{saga}/replay-plan")).json()
    assert refused["allowed"] is False


async def test_the_history_says_who_steered_it(
    operator: httpx.AsyncClient, ours: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    _, saga = await parked(operator, evolution)
    assert (await ours.post(f"/sagas/{saga}/replay")).status_code == 202
    await outcome(pool, saga)
    events = (await operator.get(f"/sagas/{saga}/events")).json()["events"]
    (resumed,) = [event for event in events if event["type"] == "saga.resumed"]
    assert resumed["data"]["by"].startswith("ours/")


async def test_a_rolled_back_saga_starts_anew_and_the_answer_names_the_new_one(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    evolution.arm("reject", operation="create", message="token is required")
    old = problem(await operator.post(CREATE, json=asked()))["saga_id"]
    answer = await operator.post(f"/sagas/{old}/replay")
    new = answer.json()["saga_id"]
    assert answer.status_code == 202
    assert new != old
    assert answer.headers["location"] == f"/sagas/{new}"
    assert (await outcome(pool, new)).status == "completed"


async def test_a_running_saga_is_cancelled_and_undone(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    evolution.arm("slow", operation="create", seconds=1.0)
    saga = (await operator.post(f"{CREATE}?wait=0", json=asked())).json()["saga_id"]
    answer = await operator.post(f"/sagas/{saga}/cancel", json={"reason": "a mistake"})
    assert answer.status_code == 202
    assert (await outcome(pool, saga)).status == "compensated"
    assert evolution.rows() == {}
    late = await operator.post(f"/sagas/{saga}/cancel")
    assert (late.status_code, problem(late)["code"]) == (409, "not_cancellable")
    assert await contradictions(pool) == []


async def test_one_that_waits_for_a_cancelled_create_is_told_that_it_was_undone(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", seconds=1.0)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    creating = asyncio.create_task(operator.post(CREATE, json=asked(), headers=key))

    async def cancelled() -> bool:
        path = f"/sagas/{key['Idempotency-Key']}/cancel"
        return (await operator.post(path)).status_code == 202

    await eventually(cancelled)
    answer = await creating
    assert answer.status_code == 502
    assert problem(answer)["undone"] == ["evolution"]


async def test_without_a_worker_commands_are_kept_and_a_worker_carries_them_out_later(
    settings: Settings, pool: Pool, evolution: SimulatedEvolution
) -> None:
    async with (
        parts_alone(settings) as alone,
        served(alone) as where,
        client_with(where, OPERATOR) as client,
    ):
        answer = await client.post(f"{CREATE}?wait=0.2", json=asked())
        assert answer.status_code == 202
        ready = (await client.get("/readyz")).json()
        assert ready["ready"] is True
        assert ready["checks"]["workers"] == {"ok": False, "said": "0 alive", "needed": False}
        waiting = asyncio.create_task(
            client.post(CREATE, json=asked(organization_id=str(uuid.uuid4())))
        )
        async with parts_with_worker(settings):
            assert (await outcome(pool, answer.json()["saga_id"])).status == "completed"
            assert (await waiting).status_code == 201
        cancelled = await client.post(
            f"{CREATE}?wait=0", json=asked(organization_id=str(uuid.uuid4()))
        )
        saga = cancelled.json()["saga_id"]
        assert (await client.post(f"/sagas/{saga}/cancel")).status_code == 202
        async with parts_with_worker(settings):
            assert (await outcome(pool, saga)).status == "compensated"
    assert len(evolution.rows()) == 2
