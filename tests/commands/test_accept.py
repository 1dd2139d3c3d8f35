"""From command to saga: one saga an id, one winner an organization, and an answer for everybody."""

import asyncio
import json
import time
import uuid
from collections import Counter
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.claims
from evosaga.events import streams
from evosaga.events.commands import read_command
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.accept import Request, accept, parse_request
from evosaga.orchestrator.commands.results import Accepted, Conflict
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.services import Services
from tests.support.driving import contradictions, count, create, delete, nothing_pending, publish
from tests.support.waiting import eventually

CATALOGUE = discover()


def request(command: dict[str, Any]) -> Request:
    return parse_request(CATALOGUE, read_command(json.dumps(command).encode()))


async def accepted(
    pool: Pool, services: Services, *commands: dict[str, Any]
) -> list[Accepted | Conflict]:
    return await accept(pool, services, "w", [request(command) for command in commands])


async def view(pool: Pool, command: dict[str, Any]) -> SagaView:
    saga = await find_saga(pool, command["id"])
    assert saga is not None
    return saga


async def events_of(pool: Pool, saga_id: UUID) -> list[str]:
    rows = await pool.fetch(
        "SELECT type FROM evosaga.saga_events WHERE saga_id = $1 ORDER BY sequence", saga_id
    )
    return [row["type"] for row in rows]


async def test_the_start_and_the_first_intent_are_one_commit(
    pool: Pool, services: Services
) -> None:
    command = create()
    [answer] = await accepted(pool, services, command)
    assert answer.kind == "started"
    rows = await pool.fetch("SELECT type, recorded_at, xmin FROM evosaga.saga_events")
    assert [row["type"] for row in rows] == ["saga.started", "step.started"]
    assert len({(row["recorded_at"], row["xmin"]) for row in rows}) == 1
    saga = await view(pool, command)
    assert (saga.status, saga.step, saga.attempt, saga.owner) == ("running", "evolution", 1, "w")
    assert saga.instance_name == f"wa-{command['id']}"
    assert await contradictions(pool) == []


@pytest.mark.fault("a3", "a7")
async def test_a_redelivered_command_is_known_for_ever(pool: Pool, services: Services) -> None:
    command = create()
    kinds = []
    for _ in range(3):
        kinds += [a.kind for a in await accepted(pool, services, command, command)]
    other_order = command | {"data": dict(reversed(command["data"].items())), "time": "later"}
    kinds += [a.kind for a in await accepted(pool, services, other_order)]
    assert kinds == ["started"] + ["duplicate"] * 6
    assert await pool.fetchval("SELECT count(*) FROM evosaga.saga_events") == 2


@pytest.mark.fault("a10")
async def test_the_same_id_with_another_body_conflicts_and_leaves_the_first_alone(
    pool: Pool, services: Services
) -> None:
    command = create()
    another = command | {"data": command["data"] | {"name": "Another"}}
    third = delete("some-name") | {"id": command["id"]}
    answers = await accepted(pool, services, command, another, third)
    answers += await accepted(pool, services, third, command, another)
    assert [a.kind for a in answers] == [
        "started", "conflict", "conflict", "conflict", "duplicate", "conflict"
    ]  # fmt: skip
    assert (await view(pool, command)).status == "running"
    assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == 1
    assert await contradictions(pool) == []


@pytest.mark.parametrize("id_", ["order-1", "é" * 200, "0197a3c45d2e7c108a515f0a6f3b2c11", "{x}"])
async def test_an_id_that_is_no_uuid_becomes_its_uuid5(
    pool: Pool, services: Services, id_: str
) -> None:
    command = create() | {"id": id_}
    [answer] = await accepted(pool, services, command)
    assert answer.saga_id == uuid5(NAMESPACE_URL, id_)
    assert (await view(pool, command)).command_id == id_
    assert [a.kind for a in await accepted(pool, services, command)] == ["duplicate"]


async def test_an_id_in_capitals_is_the_same_id(pool: Pool, services: Services) -> None:
    command = create()
    capitals = command | {"id": command["id"].upper()}
    assert [a.kind for a in await accepted(pool, services, command, capitals)] == [
        "started",
        "duplicate",
    ]


async def test_duplicates_within_a_batch_get_one_winner_each(
    pool: Pool, services: Services
) -> None:
    organization = str(uuid.uuid4())
    first, second, third = (create(organization_id=organization) for _ in range(3))
    stranger = create()
    answers = await accepted(pool, services, first, second, first, stranger, third)
    assert [a.kind for a in answers] == ["started", "rejected", "duplicate", "started", "rejected"]
    for loser in (second, third):
        saga = await view(pool, loser)
        assert (saga.status, saga.code) == ("rejected", "in_progress")
        assert saga.existing_instance == f"wa-{first['id']}"
        assert await events_of(pool, saga.saga_id) == ["saga.rejected"]
    assert await contradictions(pool) == []


async def test_a_duplicate_of_a_finished_integration_names_the_existing_instance(
    pool: Pool, services: Services, evolution: SimulatedEvolution
) -> None:
    command = create()
    await pool.execute(
        "SELECT healthcare.save_evolution_integration($1, 'the-old-one')",
        UUID(command["data"]["organization_id"]),
    )
    assert [a.kind for a in await accepted(pool, services, command)] == ["rejected"]
    saga = await view(pool, command)
    assert (saga.code, saga.existing_instance) == ("integration_exists", "the-old-one")
    assert list(evolution.journal) == []


@pytest.mark.fault("a11")
async def test_one_name_from_two_organizations(pool: Pool, services: Services) -> None:
    first, second = (create(instance_name="same-name") for _ in range(2))
    answers = await accepted(pool, services, first, second)
    assert sorted(a.kind for a in answers) == ["rejected", "started"]
    loser = first if answers[0].kind == "rejected" else second
    assert (await view(pool, loser)).code == "name_taken"
    # And with a row of somebody else's, enabled or not, that bears the name:
    await pool.execute(
        "INSERT INTO healthcare.integrations (organization_id, enabled, config) "
        'VALUES (gen_random_uuid(), false, \'{"instance_name": "row-name"}\')'
    )
    third = create(instance_name="row-name")
    await accepted(pool, services, third)
    assert (await view(pool, third)).code == "name_taken"


@pytest.mark.fault("a9")
@pytest.mark.parametrize("rounds", [10, pytest.param(50, marks=pytest.mark.long)])
async def test_two_workers_race_for_commands_and_organizations(
    pool: Pool, services: Services, database_url: str, evolution: SimulatedEvolution, rounds: int
) -> None:
    """In each round one command at both, two creates of one organization, one name for two."""
    another = await open_pool(database_url)
    for number in range(rounds):
        organization = str(uuid.uuid4())
        same = create()
        rivals = [create(organization_id=organization) for _ in range(2)]
        namesakes = [create(instance_name=f"name-{number}") for _ in range(2)]
        batches = [[same, rivals[0], namesakes[0]], [namesakes[1], rivals[1], same]]
        one, two = await asyncio.gather(
            accepted(pool, services, *batches[0]), accepted(another, services, *batches[1])
        )
        assert sorted((one[0].kind, two[2].kind)) == ["duplicate", "started"]
        for pair, answers in ((rivals, (one[1], two[1])), (namesakes, (one[2], two[0]))):
            assert sorted(a.kind for a in answers) == ["rejected", "started"]
            winner, loser = pair if answers[0].kind == "started" else reversed(pair)
            saga = await view(pool, loser)
            assert saga.status == "rejected"
            assert saga.existing_instance == (await view(pool, winner)).instance_name
    another.terminate()
    assert await contradictions(pool) == []
    assert list(evolution.journal) == [], "nothing was touched"


@pytest.mark.parametrize("left", ["an integration", "nothing"])
async def test_a_rival_that_comes_and_goes_just_then_is_looked_at_again(
    pool: Pool, services: Services, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """It took the key after the look, and is gone when asked for its name."""
    organization = str(uuid.uuid4())
    first, second = (create(organization_id=organization) for _ in range(2))
    claim, known = (
        evosaga.orchestrator.commands.claims.insert_rows,
        evosaga.orchestrator.commands.claims.known_hashes,
    )

    async def claimed_first(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(evosaga.orchestrator.commands.claims, "insert_rows", claim)
        await accepted(pool, services, first)
        monkeypatch.setattr(evosaga.orchestrator.commands.claims, "known_hashes", gone)
        return await claim(*given, **more)

    async def gone(*given: Any) -> Any:
        monkeypatch.setattr(evosaga.orchestrator.commands.claims, "known_hashes", known)
        if left == "an integration":
            await pool.execute(
                "INSERT INTO healthcare.integrations (id, organization_id, config) "
                'VALUES ($1, $2, \'{"instance_name": "the-winner"}\')',
                UUID(first["id"]),
                UUID(organization),
            )
        await pool.execute("UPDATE evosaga.sagas SET status = 'completed'")
        return await known(*given)

    monkeypatch.setattr(evosaga.orchestrator.commands.claims, "insert_rows", claimed_first)
    kinds = [a.kind for a in await accepted(pool, services, second)]
    saga = await view(pool, second)
    if left == "nothing":
        assert (kinds, saga.status) == (["started"], "running")
    else:
        assert kinds == ["rejected"]
        assert (saga.code, saga.existing_instance) == ("integration_exists", "the-winner")


async def test_a_delete_is_known_by_its_row(pool: Pool, services: Services) -> None:
    organization, other = uuid.uuid4(), uuid.uuid4()
    await pool.execute("SELECT healthcare.save_evolution_integration($1, 'inst-one')", organization)
    strange = delete("inst-one", organization_id=str(other))
    nobody = delete("inst-two", organization_id=str(other))
    mine = delete("inst-one", organization_id=str(organization))
    second = delete("inst-one")
    answers = await accepted(pool, services, strange, nobody, mine, second)
    assert [a.kind for a in answers] == ["rejected", "rejected", "started", "started"]
    one, two = await view(pool, strange), await view(pool, nobody)
    assert one.code == two.code == "not_found"
    assert str(one.message).replace("inst-one", "inst-two") == two.message
    assert (await view(pool, second)).behind == UUID(mine["id"])
    assert one.business_key == "whatsapp/evolution/instance/inst-one"


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_many_commands_with_five_percent_duplicates_make_one_saga_an_id(
    pool: Pool, services: Services, number: int
) -> None:
    different = number - number // 20
    commands = [create() for _ in range(different)]
    batch = [*commands, *commands[:: different // (number // 20)][: number // 20]]
    requests = [request(command) for command in batch]
    began, kinds = time.perf_counter(), Counter[str]()
    for i in range(0, len(requests), 100):
        kinds.update(a.kind for a in await accept(pool, services, "w", requests[i : i + 100]))
    speed = len(requests) / (time.perf_counter() - began)
    print(f"accepted {speed:.0f} commands/s")
    assert kinds == {"started": different, "duplicate": number // 20}
    counts = await pool.fetchrow(
        "SELECT count(*) AS events, count(DISTINCT saga_id) AS sagas, "
        "count(*) FILTER (WHERE type = 'saga.started') AS starts FROM evosaga.saga_events"
    )
    assert counts is not None
    assert dict(counts) == {"events": 2 * different, "sagas": different, "starts": different}


@pytest.mark.fault("a1")
@pytest.mark.parametrize("number", [100, pytest.param(500, marks=pytest.mark.long)])
async def test_commands_on_the_stream_with_duplicates_end_in_one_saga_an_id(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, number: int
) -> None:
    commands = [create() for _ in range(number)]
    half, some = number // 2, number // 20
    twice = [*commands[:half], *commands[:some], *commands[half:], *commands[-some:]]
    for command in twice:
        await publish(redis, command)
    began = time.perf_counter()

    async def all_over() -> bool:
        return (
            await count(pool, "SELECT count(*) FROM evosaga.sagas WHERE status = 'completed'")
            == number
        )

    async with running_worker(settings), running_worker(settings):
        await eventually(all_over, 40)
        print(f"{number / (time.perf_counter() - began):.0f} creates/s through two workers")
        await eventually(lambda: nothing_pending(redis))
    assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == number
    assert await contradictions(pool) == []
    creates = evolution.journal.requests("create")
    assert len(creates) == len({entry.name for entry in creates}) == number
    assert await redis.xlen(streams.DEAD_COMMANDS) == 0
