"""Creates, deletes and cancels of one integration, at the same time and in any order.

Whatever the order, one saga at a time is at work for an organization, and in the end either all
three stores have the integration or none has.
"""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.accept
from evosaga.events import streams
from evosaga.events.commands import read_command
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.accept import accept, parse_request
from evosaga.orchestrator.commands.results import Accepted, Conflict
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.services import Services
from tests.support.driving import (
    contradictions,
    count,
    create,
    delete,
    impatient,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.waiting import eventually
from tests.support.workers import Worker

CATALOGUE = discover()


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings, impatient()) as worker:
        yield worker


def cancel(saga_id: str, **fields: Any) -> dict[str, Any]:
    data = {"saga_id": saga_id} | fields
    return {"id": str(uuid.uuid4()), "type": "saga.cancel", "data": data}


async def accepted(
    pool: Pool, services: Services, *commands: dict[str, Any]
) -> list[Accepted | Conflict]:
    """In one batch, by a worker that never runs them."""
    requests = [parse_request(CATALOGUE, read_command(json.dumps(c).encode())) for c in commands]
    return await accept(pool, services, "w", requests)


async def view(pool: Pool, command: dict[str, Any]) -> SagaView:
    saga = await find_saga(pool, command["id"])
    assert saga is not None
    return saga


async def waits(pool: Pool, command: dict[str, Any]) -> None:
    async def waiting() -> bool:
        saga = await find_saga(pool, command["id"])
        return saga is not None and saga.code == "waiting"

    await eventually(waiting, message="the delete to wait")


async def overlaps(pool: Pool) -> list[str]:
    """Sagas of one organization that were at work at the same time, as the log tells it.

    One that stands behind another is at work once it has marked the row, or found none to mark.
    """
    rows = await pool.fetch(
        """
        SELECT saga.organization_id, saga.saga_id, saga.saga,
               min(event.position) FILTER (WHERE saga.behind IS NULL OR event.type =
                   'step.succeeded' AND event.data ->> 'step' = 'mark') AS from,
               min(event.position) FILTER (WHERE event.type IN
                   ('saga.completed', 'saga.compensated')) AS until
        FROM evosaga.sagas AS saga JOIN evosaga.saga_events AS event USING (saga_id)
        WHERE saga.status <> 'rejected' AND saga.organization_id IS NOT NULL
        GROUP BY 1, 2, 3 ORDER BY 1, 4
        """
    )
    found: list[str] = []
    last: Any = None
    for row in rows:
        if row["from"] is None:  # called off while it waited
            continue
        same = last is not None and last["organization_id"] == row["organization_id"]
        if same and (last["until"] is None or last["until"] > row["from"]):
            found.append(f"{last['saga']} {last['saga_id']} and {row['saga']} {row['saga_id']}")
        last = row
    return found


async def agreed(pool: Pool, redis: Redis, evolution: SimulatedEvolution) -> set[str]:
    """The instances that there are, once everybody has them or nobody."""
    rows = await pool.fetch(
        "SELECT config ->> 'instance_name' AS name, status FROM healthcare.integrations"
    )
    names = {row["name"] for row in rows}
    found: list[Any] = await redis.keys("whatsapp:instance:*")
    keys = {key.decode().split(":")[-1] for key in found}
    assert set(evolution.live()) == set(evolution.rows()) == names == keys
    assert not [row for row in rows if row["status"] == "deleting"]
    assert await overlaps(pool) == []
    assert await contradictions(pool) == []
    return names


# --- in one batch -----------------------------------------------------------------------------


@pytest.mark.fault("a12")
async def test_a_create_and_its_deletes_in_one_batch_end_with_nothing(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    made = create()
    gone, twice = (delete(f"wa-{made['id']}") for _ in range(2))
    for command in (made, gone, twice):
        await publish(redis, command)
    async with running_worker(settings, impatient()):
        ends = [await outcome(pool, c["id"]) for c in (made, gone, twice)]
    assert ends[0].status in ("completed", "compensated")
    assert [saga.status for saga in ends[1:]] == ["completed", "completed"]
    assert [saga.behind for saga in ends] == [None, UUID(made["id"]), UUID(gone["id"])]
    assert await agreed(pool, redis, evolution) == set()
    assert await redis.xlen(streams.DEAD_COMMANDS) == 0


@pytest.mark.fault("a12")
async def test_a_delete_before_its_create_finds_nothing_and_the_create_stands(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    made = create()
    for command in (early := delete(f"wa-{made['id']}"), made):
        await publish(redis, command)
    async with running_worker(settings):
        assert (await outcome(pool, made["id"])).status == "completed"
    assert (await view(pool, early)).code == "not_found"
    assert await agreed(pool, redis, evolution) == {f"wa-{made['id']}"}


async def test_a_create_whose_place_in_the_batch_is_lost_takes_its_delete_with_it(
    pool: Pool, services: Services
) -> None:
    organization = str(uuid.uuid4())
    first, second = (create(organization_id=organization) for _ in range(2))
    gone = delete(f"wa-{second['id']}")
    kinds = [a.kind for a in await accepted(pool, services, first, second, gone)]
    assert kinds == ["started", "rejected", "rejected"]
    assert (await view(pool, gone)).code == "not_found"


async def test_facts_of_a_create_in_the_same_batch_are_known_to_its_delete(
    pool: Pool, services: Services
) -> None:
    made = create(instance_name="the-name")
    await accepted(pool, services, made, gone := delete("the-name"))
    start = (await history(pool, UUID(gone["id"])))[0].event
    assert getattr(start, "facts", None) == {
        "instance_name": "the-name",
        "integration_id": made["id"],
        "created_by": made["id"],
        "status": "pending",
        "clinic_id": made["data"]["clinic_id"],
        "organization_id": made["data"]["organization_id"],
        "key_id": services.keys.current,
        "server": "default",
        "behind": made["id"],
    }
    assert await contradictions(pool) == []


# --- in a queue -------------------------------------------------------------------------------


async def test_who_stands_behind_one_that_is_called_off_does_the_delete_itself(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    made = create()
    await publish(redis, made)
    await outcome(pool, made["id"])
    evolution.arm("429", operation="delete", times=None, retry_after=0.1)
    first, second = delete(f"wa-{made['id']}"), delete(f"wa-{made['id']}")
    await publish(redis, first)
    await publish(redis, second)
    await waits(pool, second)
    await publish(redis, cancel(first["id"]))
    assert (await outcome(pool, first["id"])).status == "compensated"
    evolution.disarm()
    assert (await outcome(pool, second["id"])).status == "completed"
    assert await agreed(pool, redis, evolution) == set()


async def test_those_of_one_batch_are_in_the_queue_in_their_order_though_they_came_at_one_moment(
    pool: Pool, services: Services
) -> None:
    for n in range(8):  # the ids are random, and would be right by chance in every second try
        name = f"the-name-{n}"
        made, *deletes = create(instance_name=name), *(delete(name) for _ in range(3))
        await accepted(pool, services, made, *deletes)
        await pool.execute(
            "UPDATE evosaga.sagas SET status = 'compensated' WHERE saga_id = $1",
            UUID(deletes[1]["id"]),
        )
        await accepted(pool, services, late := delete(name))
        assert (await view(pool, late)).behind == UUID(deletes[2]["id"])


async def test_one_that_leaves_the_queue_lets_nobody_pass_those_before_it(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """The first has waited itself, so it holds no key: only its place in the queue tells of it."""
    evolution.arm("429", operation="create", times=None, retry_after=0.1)
    evolution.arm("5xx_before", operation="connectionState", name="the-name", times=None)
    made = create(instance_name="the-name")
    first, second, third = (delete("the-name") for _ in range(3))
    for command in (made, first, second, third):
        await publish(redis, command)
    await outcome(pool, made["id"])

    async def at_work() -> bool:
        saga = await find_saga(pool, first["id"])
        return saga is not None and saga.step == "evolution"

    await eventually(at_work)
    await publish(redis, cancel(second["id"]))
    assert (await outcome(pool, second["id"])).status == "compensated"

    async def waits_for_the_first() -> bool:
        return first["id"] in str((await view(pool, third)).message)

    await eventually(waits_for_the_first)
    fourth = delete("the-name")
    await publish(redis, fourth)
    await waits(pool, fourth)
    assert (await view(pool, fourth)).behind == UUID(third["id"])
    evolution.disarm()
    for command in (first, third, fourth):
        assert (await outcome(pool, command["id"], 30)).status == "completed"
    assert await agreed(pool, redis, evolution) == set()


async def test_who_waits_for_one_that_is_parked_is_called_off_and_told_what_to_do(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings, impatient(1)):
        made = create()
        await publish(redis, made)
        await outcome(pool, made["id"])
        evolution.arm("429", operation="delete", times=None, retry_after=0.1)
        first, second = delete(f"wa-{made['id']}"), delete(f"wa-{made['id']}")
        await publish(redis, first)
        await publish(redis, second)
        await waits(pool, second)
        evolution.disarm()
        evolution.arm("5xx_before", operation="delete", times=None)
        assert (await outcome(pool, first["id"])).status == "failed"
        saga = await outcome(pool, second["id"], 30)
        assert (saga.status, saga.code) == ("compensated", "ahead_parked")
        assert f"saga {first['id']} " in str(saga.message)
        assert "replay that one" in str(saga.message)
        evolution.disarm()
        replay = {"id": "again", "type": "saga.replay", "data": {"saga_id": first["id"]}}
        await publish(redis, replay)

        async def done() -> bool:
            return (await view(pool, first)).status == "completed"

        await eventually(done)
    assert await agreed(pool, redis, evolution) == set()


async def test_a_create_right_after_the_queue_is_empty_is_not_caught_by_it(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    organization, name = str(uuid.uuid4()), "the-name"
    fields = {"organization_id": organization, "instance_name": name}
    for command in (made := create(**fields), delete(name), last := delete(name)):
        await publish(redis, command)
    assert (await outcome(pool, last["id"])).status == "completed"
    again = create(**fields)
    await publish(redis, again)
    assert (await outcome(pool, again["id"])).status == "completed"
    assert (await outcome(pool, made["id"])).saga_id != UUID(again["id"])
    assert await agreed(pool, redis, evolution) == {name}


async def test_a_delete_that_has_waited_keeps_creates_out_until_it_is_over(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    # Long enough that the delete stops it before it is tried again, with nothing sent.
    evolution.arm("429", operation="create", times=None, retry_after=2)
    made = create(instance_name="the-name")
    await publish(redis, made)
    await publish(redis, gone := delete("the-name"))
    await waits(pool, gone)
    evolution.disarm()
    evolution.arm("5xx_before", operation="connectionState", name="the-name", times=None)
    assert (await outcome(pool, made["id"])).status in ("completed", "compensated")
    again = create(**made["data"])
    await publish(redis, again)
    early = await outcome(pool, again["id"])
    assert (early.status, early.code) == ("rejected", "in_progress")
    assert gone["id"] in str(early.message)
    evolution.disarm()
    assert (await outcome(pool, gone["id"], 30)).status == "completed"
    assert await agreed(pool, redis, evolution) == set()


# --- from two workers at once -----------------------------------------------------------------


@pytest.mark.fault("a9", "a12")
@pytest.mark.parametrize("rounds", [8, pytest.param(40, marks=pytest.mark.long)])
async def test_two_workers_that_accept_at_once_make_one_queue(
    pool: Pool, services: Services, database_url: str, rounds: int
) -> None:
    """In each round a create and five deletes of it, all of them at once and twice over."""
    another = await open_pool(database_url)
    rng = random.Random(12)
    for number in range(rounds):
        made = create(instance_name=f"name-{number}")
        deletes = [delete(f"name-{number}") for _ in range(5)]
        if number % 2:
            await accepted(pool, services, made)
        batches: list[list[dict[str, Any]]] = [[made, *deletes], [*deletes, made]]
        rng.shuffle(batches[1])
        await asyncio.gather(
            *(accepted(p, services, *b) for p, b in zip((pool, another), batches, strict=True))
        )
        rows = await pool.fetch(
            "SELECT saga_id, status, behind FROM evosaga.sagas WHERE instance_name = $1",
            f"name-{number}",
        )
        status = {row["saga_id"]: row["status"] for row in rows}
        assert status.keys() == {UUID(c["id"]) for c in (made, *deletes)}
        queue = {row["behind"]: row["saga_id"] for row in rows if row["status"] == "running"}
        assert len(queue) == sum(s == "running" for s in status.values()), "nobody shares a place"
        place, length = queue.get(None), 0
        while place is not None:
            place, length = queue.get(place), length + 1
        assert length == len(queue), "everybody stands in the one queue"
    another.terminate()
    assert await contradictions(pool) == []


async def test_whoever_is_ahead_cannot_end_while_somebody_gets_in_line_behind_it(
    pool: Pool, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a create that came just then would see neither of the two."""
    await accepted(pool, services, made := create(instance_name="the-name"))
    record, had_to_wait = evosaga.orchestrator.commands.accept._record, False

    async def recording(*given: Any) -> Any:
        nonlocal had_to_wait
        try:
            async with pool.acquire() as other, other.transaction():
                await other.execute("SET LOCAL lock_timeout = '200ms'")
                end = "UPDATE evosaga.sagas SET status = 'compensated' WHERE saga_id = $1"
                await other.execute(end, UUID(made["id"]))
        except asyncpg.LockNotAvailableError:
            had_to_wait = True
        return await record(*given)

    monkeypatch.setattr(evosaga.orchestrator.commands.accept, "_record", recording)
    [answer] = await accepted(pool, services, gone := delete("the-name"))
    assert answer.kind == "started"
    assert had_to_wait
    assert (await view(pool, gone)).behind == UUID(made["id"])


@pytest.mark.parametrize("lives", [20, pytest.param(60, marks=pytest.mark.long)])
async def test_a_saga_that_ends_while_somebody_gets_in_line_is_not_waited_for_in_vain(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, lives: int
) -> None:
    """A delete at every moment of a create's short life, each time on its own organization."""
    evolution.arm("slow_after", operation="create", times=None, seconds=1.0)
    rng = random.Random(7)
    made = [create() for _ in range(lives)]
    gone = [delete(f"wa-{command['id']}") for command in made]

    async def live_and_die(birth: dict[str, Any], death: dict[str, Any], after: float) -> None:
        await publish(redis, birth)
        await asyncio.sleep(after)
        await publish(redis, death)

    async with asyncio.TaskGroup() as group:
        for birth, death in zip(made, gone, strict=True):
            group.create_task(live_and_die(birth, death, rng.uniform(0, 1.5)))
    ends = [await outcome(pool, command["id"], 40) for command in gone]
    births = [await outcome(pool, command["id"]) for command in made]
    behind = sum(saga.behind is not None for saga in ends)
    stopped = sum(saga.status == "compensated" for saga in births)
    print(f"{behind} of {len(ends)} deletes waited, {stopped} creates were stopped")
    assert {saga.status for saga in ends} == {"completed"}
    assert behind > 0
    assert stopped > 0
    assert await agreed(pool, redis, evolution) == set()
    assert await redis.xlen(streams.DEAD_COMMANDS) == 0


@pytest.mark.fault("a12")
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))]
)
async def test_whatever_the_order_the_stores_agree_in_the_end(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, seed: int
) -> None:
    """Ten organizations, each with its own shuffle of creates, deletes and cancels."""
    rng = random.Random(seed)
    evolution.arm("slow", operation="create", times=None, seconds=0.02)
    evolution.arm("delete_async", operation="delete", times=None, seconds=0.02)
    commands: list[dict[str, Any]] = []

    async def live(organization: str, name: str) -> None:
        mine: list[dict[str, Any]] = []
        for _ in range(12):
            match rng.choice(["create", "create", "create", "delete", "cancel", "again"]):
                case "create":
                    command = create(organization_id=organization, instance_name=name)
                case "delete":
                    command = delete(name)
                case "cancel" if mine:
                    command = cancel(rng.choice(mine)["id"], if_possible=True)
                case _ if mine:
                    command = rng.choice(mine)  # the same once more
                case _:
                    continue
            if command["type"] != "saga.cancel":
                mine.append(command)
            await publish(redis, command)
            await asyncio.sleep(rng.choice([0, 0, 0.01, 0.1, 0.3]))
        commands.extend(mine)

    async with running_worker(settings, impatient(4)), running_worker(settings, impatient(4)):
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(live(str(uuid.uuid4()), f"seed-{seed}-{number}"))
        ends = [await outcome(pool, command["id"], 60) for command in commands]
        await eventually(lambda: nothing_pending(redis))
    assert "failed" not in {saga.status for saga in ends}
    left = await agreed(pool, redis, evolution)
    print(f"{len(left)} of 10 integrations are left after {len(ends)} commands")
    assert await redis.xlen(streams.DEAD_COMMANDS) == 0


async def test_a_create_that_sleeps_long_is_stopped_at_once_for_the_delete_behind_it(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("429", operation="create", times=None, retry_after=30)
    made = create()
    await publish(redis, made)

    async def held() -> bool:
        saga = await find_saga(pool, made["id"])
        return saga is not None and saga.code == "evolution_busy"

    await eventually(held)
    gone = delete(f"wa-{made['id']}")
    await publish(redis, gone)
    assert (await outcome(pool, gone["id"])).status == "completed"
    assert "saga.cancel_requested" in await story(pool, await view(pool, made))
    assert await count(pool, "SELECT count(*) FROM evosaga.saga_events") < 80
    assert await agreed(pool, redis, evolution) == set()
