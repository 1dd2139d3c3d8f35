"""The two endpoints of the original system, with exactly its bodies."""

import asyncio
import json
import uuid
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import Filter, find_saga, list_sagas
from tests.api.conftest import CREATE, OPERATOR, asked, client_with, problem, served
from tests.support.driving import contradictions, impatient, outcome
from tests.support.waiting import eventually

GONE = {
    "success": True,
    "evolution_deleted": True,
    "database_deleted": True,
    "cache_invalidated": True,
    "workers_notified": True,
    "errors": [],
}


def existing(instance: str | None) -> dict[str, object]:
    return {
        "success": False,
        "error": "WhatsApp integration already exists for this organization",
        "existing_instance": instance,
        "message": "Please delete the existing integration before creating a new one",
    }


async def under_way(client: httpx.AsyncClient) -> None:
    """Wait until a saga is running."""

    async def running() -> bool:
        return bool((await client.get("/sagas?status=running")).json()["sagas"])

    await eventually(running)


async def test_a_create_answers_201_with_the_qr_code_to_scan(
    operator: httpx.AsyncClient, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    answer = await operator.post(CREATE, json=asked(channel="WHATSAPP-BAILEYS"))
    told = answer.json()
    raw: Any = await redis.get(f"evosaga:qr:{told['instance_name']}")
    kept = json.loads(raw)
    assert answer.status_code == 201
    assert told == {
        "success": True,
        "saga_id": told["saga_id"],
        "integration_id": told["saga_id"],
        "instance_name": f"wa-{told['saga_id']}",
        "status": "pending",
        "qr_code": {name: kept[name] for name in ("base64", "code", "pairing_code")},
    }
    assert told["qr_code"]["base64"].startswith("data:image/png;base64,")
    assert answer.headers["location"] == f"/integrations/evolution/{told['instance_name']}"
    assert told["instance_name"] in evolution.live()
    assert await pool.fetchval("SELECT id FROM healthcare.integrations") == UUID(told["saga_id"])


async def test_a_channel_without_a_qr_code_has_none(operator: httpx.AsyncClient) -> None:
    answer = await operator.post(CREATE, json=asked())
    assert (answer.status_code, answer.json()["qr_code"]) == (201, None)


async def test_a_second_integration_is_refused_with_the_original_body(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    first = (await operator.post(CREATE, json=asked())).json()["instance_name"]
    second = await operator.post(CREATE, json=asked())
    assert second.status_code == 409
    assert second.headers["content-type"] == "application/json"
    assert second.json() == existing(first)
    assert list(evolution.rows()) == [first]


async def test_of_many_creates_at_once_one_wins_and_the_others_are_told_so(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    answers = await asyncio.gather(*(operator.post(CREATE, json=asked()) for _ in range(12)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201] + [409] * 11
    (won,) = [answer.json()["instance_name"] for answer in answers if answer.status_code == 201]
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json() == existing(won)
    assert list(evolution.rows()) == [won]
    assert await contradictions(pool) == []


async def test_a_delete_says_of_each_place_that_it_is_gone(
    operator: httpx.AsyncClient, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    name = (await operator.post(CREATE, json=asked())).json()["instance_name"]
    answer = await operator.delete(f"/integrations/evolution/{name}")
    assert (answer.status_code, answer.json()) == (200, GONE)
    assert evolution.rows() == {}
    assert await pool.fetchval("SELECT count(*) FROM healthcare.integrations") == 0
    assert await redis.exists(f"whatsapp:instance:{name}") == 0
    again = await operator.post(CREATE, json=asked())
    assert again.status_code == 201


async def test_a_strangers_instance_of_that_name_is_left_alone_and_the_answer_says_so(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    name = (await operator.post(CREATE, json=asked())).json()["instance_name"]
    evolution.foreign(name)
    told = (await operator.delete(f"/integrations/evolution/{name}")).json()
    assert (told["success"], told["evolution_deleted"]) == (True, False)
    assert "not ours" in told["errors"][0]
    assert told["database_deleted"] is told["cache_invalidated"] is True
    assert name in evolution.rows()


async def test_there_is_nothing_to_delete_under_a_name_that_nobody_has(
    operator: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for name in ("wa-nobodys", "Not A Name", "constructor", "x", "a" * 200):
        with subtests.test(name=name):
            answer = await operator.delete(f"/integrations/evolution/{name}")
            assert answer.status_code == 404
            assert problem(answer)["code"] == "unknown_instance"


async def test_who_asks_for_a_delete_that_is_under_way_waits_for_that_one(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    name = (await operator.post(CREATE, json=asked())).json()["instance_name"]
    evolution.arm("slow", operation="delete", seconds=0.5)
    path, key = f"/integrations/evolution/{name}", {"Idempotency-Key": "the-second"}
    first = asyncio.create_task(operator.delete(path))
    await under_way(operator)
    second = await operator.delete(path, headers=key)
    assert (second.status_code, second.json()) == (200, GONE)
    assert (await first).json() == GONE
    assert len(evolution.journal.requests("delete")) == 1
    # Its id gets that answer for ever, though by now there is nothing of that name.
    assert (await operator.delete(path, headers=key)).json() == GONE
    assert (await operator.delete(path)).status_code == 404


async def test_however_many_ask_for_the_delete_each_gets_its_answer(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    """More than may wait in the queue, so that some are told of the one that stands before them."""
    name = (await operator.post(CREATE, json=asked())).json()["instance_name"]
    evolution.arm("slow", operation="delete", seconds=1.0)
    path = f"/integrations/evolution/{name}"
    first = asyncio.create_task(operator.delete(path))
    await under_way(operator)
    answers = await asyncio.gather(first, *(operator.delete(path) for _ in range(14)))
    assert [answer.json() for answer in answers] == [GONE] * 15
    refused, _ = await list_sagas(pool, Filter(status="rejected"))
    assert refused, "the queue was never full"
    assert await contradictions(pool) == []


async def test_while_the_one_before_is_being_deleted_a_create_is_asked_to_wait(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    name = (await operator.post(CREATE, json=asked())).json()["instance_name"]
    evolution.arm("slow", operation="delete", seconds=0.5)
    deleting = asyncio.create_task(operator.delete(f"/integrations/evolution/{name}"))
    await under_way(operator)
    answer = await operator.post(CREATE, json=asked())
    assert answer.status_code == 409
    assert problem(answer)["code"] == "in_progress"
    assert "is over" in answer.json()["detail"]
    assert (await deleting).json() == GONE
    assert (await operator.post(CREATE, json=asked())).status_code == 201


async def test_a_delete_of_today_is_not_answered_with_that_of_yesterday(
    settings: Settings, evolution: SimulatedEvolution, redis: Redis
) -> None:
    """The same name again, parked this time: what the old delete removed says nothing of it."""
    async with (
        parts_with_worker(settings, impatient(1)) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        path = "/integrations/evolution/clinica-sol"
        body = asked(instance_name="clinica-sol")
        await client.post(CREATE, json=body)
        assert (await client.delete(path)).json() == GONE
        assert (await client.post(CREATE, json=body)).status_code == 201
        evolution.arm("5xx_before", operation="delete", times=None)
        parked = problem(await client.delete(path))
        assert parked["code"] == "parked"
        again = problem(await client.delete(path))
        assert (again["code"], again["saga_id"]) == ("parked", parked["saga_id"])

        evolution.disarm()
        await client.post(f"/sagas/{parked['saga_id']}/replay")
        assert (await outcome(parts.pool, parked["saga_id"])).status == "completed"
        evolution.arm("400_async_remove", operation="create", seconds=60)
        evolution.arm("5xx_before", operation="delete", times=None)
        half = problem(await client.post(CREATE, json=body))
        assert half["code"] == "parked"
        told = await client.delete(path)
        assert (told.status_code, problem(told)["code"]) == (409, "in_progress")
        assert half["saga_id"] in problem(told)["detail"]


async def test_the_same_idempotency_key_gives_the_answer_of_the_same_saga(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution, pool: Pool
) -> None:
    body, key = asked(), {"Idempotency-Key": str(uuid.uuid4())}
    answers = await asyncio.gather(
        *(operator.post(CREATE, json=body, headers=key) for _ in range(4))
    )
    answers.append(await operator.post(CREATE, json=body, headers=key))
    assert [answer.status_code for answer in answers] == [201] * 5
    assert {answer.json()["saga_id"] for answer in answers} == {key["Idempotency-Key"]}
    assert len(evolution.journal.requests("create")) == 1

    quoted = await operator.post(
        CREATE, json=body, headers={"Idempotency-Key": f'"{key["Idempotency-Key"]}"'}
    )
    assert quoted.json() == answers[0].json()
    other = await operator.post(CREATE, json=asked(name="Luna"), headers=key)
    assert problem(other)["code"] == "conflicting_duplicate"
    assert other.status_code == 409
    assert len((await list_sagas(pool, Filter()))[0]) == 1


async def test_who_does_not_want_to_wait_is_told_where_to_look(
    operator: httpx.AsyncClient, pool: Pool, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", times=None, seconds=0.3)
    for headers, wait in (
        ({"Prefer": "respond-async"}, 30),
        ({"Prefer": "wait=0"}, 30),
        ({}, 0),
        ({}, 0.05),
    ):
        answer = await operator.post(
            f"{CREATE}?wait={wait}",
            json=asked(organization_id=str(uuid.uuid4())),
            headers=headers,
        )
        told = answer.json()
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/sagas/{told['saga_id']}" == told["location"]
        assert told["status"] == "running"
        saga = (await operator.get(answer.headers["location"])).json()
        assert saga["instance_name"] == told["instance_name"]


async def test_what_was_rolled_back_answers_502_with_what_failed_and_what_was_undone(
    settings: Settings, evolution: SimulatedEvolution, redis: Redis, pool: Pool
) -> None:
    async with (
        parts_with_worker(settings, impatient()) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        id_ = str(uuid.uuid4())
        await redis.set(f"evosaga:removed:wa-{id_}", id_)
        answer = await client.post(CREATE, json=asked(), headers={"Idempotency-Key": id_})
        told = problem(answer)
        assert (answer.status_code, told["code"]) == (502, "rolled_back")
        assert told["failed"]["step"] == "cache"
        assert told["undone"] == ["postgres", "evolution"]
        assert told["saga_id"] == id_
        assert answer.headers["location"] == f"/sagas/{id_}"
        assert "undone: postgres, evolution" in told["detail"]
        assert evolution.rows() == {}

        evolution.arm("reject", operation="create", message="token is required")
        answer = await client.post(CREATE, json=asked())
        assert answer.status_code == 502
        assert problem(answer)["undone"] == []


async def test_what_is_parked_half_way_answers_502_and_keeps_its_place(
    settings: Settings, evolution: SimulatedEvolution, pool: Pool
) -> None:
    async with (
        parts_with_worker(settings, impatient(1)) as parts,
        served(parts) as where,
        client_with(where, OPERATOR) as client,
    ):
        name = (await client.post(CREATE, json=asked())).json()["instance_name"]
        evolution.arm("5xx_before", operation="delete", times=None)
        answer = await client.delete(f"/integrations/evolution/{name}")
        told = problem(answer)
        assert (answer.status_code, told["code"]) == (502, "parked")
        assert told["failed"]["step"] == "evolution"
        saga = await find_saga(pool, told["saga_id"])
        assert saga is not None
        assert saga.status == "failed"


async def test_a_name_that_is_taken_is_no_duplicate(operator: httpx.AsyncClient) -> None:
    await operator.post(CREATE, json=asked(instance_name="clinica-sol"))
    answer = await operator.post(
        CREATE, json=asked(instance_name="clinica-sol", organization_id=str(uuid.uuid4()))
    )
    assert answer.status_code == 409
    assert problem(answer)["code"] == "name_taken"


async def test_a_webhook_host_that_nobody_allowed_is_refused_before_anything_is_touched(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    answer = await operator.post(CREATE, json=asked(webhook_url="http://169.254.169.254/latest"))
    assert answer.status_code == 409
    assert problem(answer)["reason"] == "webhook_host"
    assert evolution.journal.requests("create") == []


async def test_an_organization_that_starts_sagas_by_the_hundred_is_slowed_down(
    settings: Settings, parts: AppContext, evolution: SimulatedEvolution
) -> None:
    few = Settings.model_validate(settings.model_dump() | {"organization_sagas": 1})
    evolution.arm("slow", operation="create", seconds=1.5)
    held = parts.__class__(**{f: getattr(parts, f) for f in parts.__slots__} | {"settings": few})
    async with served(held) as where, client_with(where, OPERATOR) as client:
        key = {"Idempotency-Key": "first"}
        body = asked()
        first = asyncio.create_task(client.post(CREATE, json=body, headers=key))
        await under_way(client)
        repeated = await client.post(f"{CREATE}?wait=0", json=body, headers=key)
        assert repeated.status_code == 202, "it is the same saga, not another one"
        second = await client.post(CREATE, json=asked())
        assert second.status_code == 429
        assert problem(second)["code"] == "too_many_sagas"
        assert int(second.headers["retry-after"]) > 0
        other = await client.post(CREATE, json=asked(organization_id=str(uuid.uuid4())))
        assert other.status_code == 201
        assert (await first).json()["saga_id"] == repeated.json()["saga_id"]
