"""What becomes of a command whose business key is taken, as its definition declares."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from evosaga import (
    Command,
    Done,
    Held,
    Outcome,
    Rejected,
    Retry,
    Saga,
    StepContext,
    compensatable,
    domain,
    retryable,
)
from evosaga.events import turns
from evosaga.events.commands import read_command
from evosaga.events.database import Pool
from evosaga.events.model import SagaEvent
from evosaga.orchestrator.commands.accept import accept, parse_request
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domain
from evosaga.orchestrator.engine import driver
from evosaga.orchestrator.engine.execution import execute
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.maintenance.rebuild import rebuild
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.worker import running_worker
from evosaga.sagas.admission import Admission, OnConflict, Refusal
from evosaga.sagas.conflicts import LONGEST_QUEUE, OpenSaga, weigh
from evosaga.sagas.definition import DefinitionError
from tests.support.driving import outcome, publish, story
from tests.support.waiting import eventually


class Paint(Command):
    command = "wall.paint"
    wall: int
    colour: str = "white"


class Tear(Command):
    command = "wall.tear_down"
    wall: int


class Site:
    """Walls at which one works at a time. Who is at ``busy`` walls stays until they are let go."""

    def __init__(self) -> None:
        self.busy: set[int] = set()
        self.broken: set[str] = set()
        self.at: dict[int, UUID] = {}
        self.met: list[str] = []
        self.done: list[str] = []


Context = StepContext[Any, Site]


async def enter(ctx: Context) -> Outcome:
    other = ctx.services.at.setdefault(ctx.input.wall, ctx.saga_id)
    if other != ctx.saga_id:
        ctx.services.met.append(f"{ctx.saga_id} met {other}")
    return Done()


async def leave(ctx: Context) -> Outcome:
    ctx.services.at.pop(ctx.input.wall, None)
    return Done()


async def work(ctx: Context) -> Outcome:
    if ctx.input.wall in ctx.services.busy:
        return Held("busy", "the wall is not ready", retry_after=0.05)
    if getattr(ctx.input, "colour", "") in ctx.services.broken:
        raise RuntimeError("out of paint")
    ctx.services.done.append(str(ctx.saga_id))
    return Done()


async def erase(ctx: Context) -> Outcome:
    return await leave(ctx)


PAINT = Saga(
    name="paint-a-wall",
    version=1,
    command=Paint.command,
    input=Paint,
    business_key=lambda order: f"{order.wall}",
    key_scope="wall",
    on_conflict="wait",
    steps=(
        compensatable("enter", do=enter, undo=erase),
        compensatable("work", do=work, undo=erase, retry=Retry(attempts=1)),
        retryable("leave", do=leave),
    ),
)
TEAR = Saga(
    name="tear-a-wall-down",
    version=1,
    command=Tear.command,
    input=Tear,
    business_key=lambda order: f"{order.wall}",
    key_scope="wall",
    on_conflict={"paint-a-wall": "supersede"},
    steps=(
        retryable("enter", do=enter),
        retryable("work", do=work, retry=Retry(attempts=1)),
        retryable("leave", do=leave),
    ),
)


def building(site: Site, *sagas: Saga[Any, Any]) -> Domain[Site]:
    @asynccontextmanager
    async def services() -> AsyncIterator[Site]:
        yield site

    return domain("building", *(sagas or (PAINT, TEAR)), services=services)


def paint(wall: int, **more: Any) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "type": "wall.paint", "data": {"wall": wall} | more}


def tear(wall: int) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "type": "wall.tear_down", "data": {"wall": wall}}


async def view(pool: Pool, command: dict[str, Any]) -> SagaView:
    saga = await find_saga(pool, command["id"])
    assert saga is not None
    return saga


async def at_step(pool: Pool, command: dict[str, Any], step: str) -> None:
    async def there() -> bool:
        saga = await find_saga(pool, command["id"])
        return saga is not None and saga.step == step

    await eventually(there)


async def waits(pool: Pool, command: dict[str, Any]) -> SagaView:
    async def there() -> bool:
        saga = await find_saga(pool, command["id"])
        return saga is not None and saga.code == "waiting"

    await eventually(there)
    return await view(pool, command)


async def test_those_that_wait_go_one_after_the_other_and_write_nothing_while_they_wait(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    site = Site()
    site.busy.add(1)
    domain_ = building(site)
    orders = [paint(1) for _ in range(4)]
    async with running_worker(settings, domain_):
        for order in orders:
            await publish(redis, order)
        await at_step(pool, orders[0], "work")
        second = await waits(pool, orders[1])
        last = await waits(pool, orders[3])
        assert second.message == f"waits for saga {orders[0]['id']} to be over"
        assert last.behind == UUID(orders[2]["id"])
        assert await story(pool, last) == ["saga.started"]
        told = await why_of(pool, domain_.sagas, second)
        assert told.headline.startswith(f"It waits for saga {orders[0]['id']} (paint-a-wall)")
        other = await publish(redis, paint(2))  # another key is in nobody's way
        assert (await outcome(pool, other)).status == "completed"
        assert (await rebuild(pool, domain_.sagas, check=True)).different == 0
    # The rest of them is done by another worker, which has not seen them come.
    async with running_worker(settings, domain_):
        site.busy.clear()
        ends = [await outcome(pool, order["id"]) for order in orders]
    assert [saga.status for saga in ends] == ["completed"] * 4
    assert [id_ for id_ in site.done if id_ != other] == [order["id"] for order in orders]
    assert site.met == []
    assert (await story(pool, ends[3]))[:2] == ["saga.started", "step.started enter"]
    assert (await rebuild(pool, domain_.sagas, check=True)).different == 0


async def test_what_supersedes_stops_the_one_ahead_and_what_the_mapping_leaves_out_is_refused(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    site = Site()
    site.busy.add(1)
    async with running_worker(settings, building(site)):
        first, second, third = paint(1), paint(1), tear(1)
        for order in (first, second):
            await publish(redis, order)
        await at_step(pool, first, "work")
        await waits(pool, second)
        await publish(redis, third)
        stopped = await outcome(pool, second["id"])
        assert (stopped.status, stopped.code) == ("compensated", "cancelled")

        async def behind_the_first() -> bool:
            return first["id"] in str((await view(pool, third)).message)

        await eventually(behind_the_first)
        refused = await outcome(pool, await publish(redis, tear(1)))
        assert (refused.status, refused.code) == ("rejected", "in_progress")
        assert f"saga {third['id']} (tear-a-wall-down)" in str(refused.message)
        site.busy.clear()
        assert (await outcome(pool, first["id"])).status == "completed"
        assert (await outcome(pool, third["id"])).status == "completed"
    assert site.done == [first["id"], third["id"]]
    assert site.met == []


async def test_behind_one_that_is_parked_nothing_goes_on_and_a_newcomer_is_refused(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    site = Site()
    site.busy.add(1)
    async with running_worker(settings, building(site)):
        first, second = tear(1), paint(1)
        await publish(redis, first)
        await at_step(pool, first, "work")
        await publish(redis, second)
        await waits(pool, second)
        site.broken.add("")  # TEAR has no colour
        site.busy.clear()
        assert (await outcome(pool, first["id"])).status == "failed"
        called_off = await outcome(pool, second["id"])
        assert (called_off.status, called_off.code) == ("compensated", "ahead_parked")
        assert f"saga {first['id']} " in str(called_off.message)
        refused = await outcome(pool, await publish(redis, paint(1)))
        assert (refused.status, refused.code) == ("rejected", "in_progress")
        assert f"is parked at step work: replay it first, as evosaga why {first['id']}" in str(
            refused.message
        )
    assert site.done == []


@pytest.mark.parametrize("ahead", ["failed", "running"])
async def test_one_called_off_by_a_worker_that_died_begins_nothing_without_its_key(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch, ahead: str
) -> None:
    site = Site()
    first, second = tear(1), paint(1)

    async def die(live: SagaInstance, *rest: Any) -> SagaEvent:
        if live.refused is not None:
            raise asyncio.CancelledError
        return await execute(live, *rest)

    async def claimed() -> bool:
        return "step.started enter" in await story(pool, await view(pool, second))

    site.busy.add(1)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "execute", die)
        async with running_worker(settings, building(site)):
            await publish(redis, first)
            await at_step(pool, first, "work")
            await publish(redis, second)
            await waits(pool, second)
            site.broken.add("")
            site.busy.clear()
            await eventually(claimed)
    change = "UPDATE evosaga.sagas SET status = $2, next_at = $3 WHERE saga_id = $1"
    await pool.execute(change, UUID(first["id"]), ahead, None)
    await pool.execute(change, UUID(second["id"]), "running", datetime.now(UTC))
    async with running_worker(settings, building(site)):
        if ahead == "failed":
            called_off = await outcome(pool, second["id"])
            assert (called_off.status, called_off.code) == ("compensated", "ahead_parked")
        else:  # it was replayed, and the other goes on waiting until it is over
            told = await waits(pool, second)
            assert told.message == f"waits for saga {first['id']} to be over"
            site.at.clear()
            await pool.execute(change, UUID(first["id"]), "completed", None)
            assert (await outcome(pool, second["id"])).status == "completed"
    assert site.met == []


async def test_an_older_release_that_takes_the_key_first_is_waited_for_too(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    """It does not look at queues: only the key in the database tells it of others."""
    site = Site()
    site.busy.add(1)
    old = building(site, replace(PAINT, on_conflict="refuse", key_scope=None, name="wall"))
    first, second, third = paint(1), paint(1), paint(1)
    new = building(site, replace(PAINT, name="wall", key_scope=None))

    async def accepted(by: Domain[Site], order: dict[str, Any]) -> str:
        request = parse_request(by.sagas, read_command(json.dumps(order).encode()))
        [answer] = await accept(pool, None, None, [request])
        return answer.kind

    assert await accepted(new, first) == "started"
    assert await accepted(new, second) == "started"
    await pool.execute(
        "UPDATE evosaga.sagas SET status = 'completed', next_at = NULL WHERE saga_id = $1",
        UUID(first["id"]),
    )
    assert await accepted(old, third) == "started"
    async with running_worker(settings, new):
        await at_step(pool, third, "work")
        waiting = await waits(pool, second)

        async def behind_the_third() -> bool:
            return third["id"] in str((await view(pool, second)).message)

        await eventually(behind_the_third)
        assert await story(pool, waiting) == ["saga.started"]
        site.busy.clear()
        assert (await outcome(pool, second["id"])).status == "completed"
    assert site.done == [third["id"], second["id"]]
    assert site.met == []


async def test_one_accepted_while_the_one_ahead_was_being_parked_is_looked_at(pool: Pool) -> None:
    known = building(Site()).sagas
    first, second = paint(9), paint(9)
    requests = [parse_request(known, read_command(json.dumps(o).encode())) for o in (first, second)]
    await accept(pool, None, None, requests)
    # The commit that parked the first began before the second did, and ended after it.
    await pool.execute(
        "UPDATE evosaga.sagas SET status = 'failed', next_at = NULL, owner = NULL, "
        "updated_at = (SELECT scheduled_at - interval '1 second' FROM evosaga.sagas "
        "WHERE saga_id = $2) WHERE saga_id = $1",
        UUID(first["id"]),
        UUID(second["id"]),
    )
    came = await turns.come(pool, "me", 10, [(PAINT.name, PAINT.version)])
    assert [str(row["saga_id"]) for row in came] == [second["id"]]


async def test_commands_of_one_batch_are_weighed_in_their_order(pool: Pool) -> None:
    known = building(Site()).sagas
    orders = [paint(7), tear(7), paint(7), tear(7)]
    requests = [parse_request(known, read_command(json.dumps(o).encode())) for o in orders]
    answers = await accept(pool, None, None, requests)
    assert [answer.kind for answer in answers] == ["started", "started", "started", "started"]
    found = [(await view(pool, order)).behind for order in orders]
    assert found == [None, *(UUID(order["id"]) for order in orders[:3])]


def test_the_answer_is_that_of_the_saga_in_the_way_and_a_queue_has_an_end() -> None:
    wanted, me = Admission("wall/1"), uuid.uuid4()
    ahead = OpenSaga(uuid.uuid4(), "paint-a-wall", "running", "wall/1")

    def kind(policy: OnConflict, *queue: OpenSaga) -> str:
        said = weigh(policy, me, wanted, queue)
        if isinstance(said, Refusal):
            return said.code
        return "supersedes" if said.follow_up else "waits" if said.behind else "begins"

    assert kind("refuse") == "begins"
    assert kind("refuse", ahead) == "in_progress"
    assert kind("wait", ahead) == "waits"
    assert kind("supersede", ahead) == "supersedes"
    assert kind({"paint-a-wall": "wait", "*": "supersede"}, ahead) == "waits"
    assert kind({"*": "supersede"}, ahead) == "supersedes"
    assert kind({"another": "wait"}, ahead) == "in_progress"
    assert kind("supersede", replace(ahead, status="compensating")) == "waits"
    assert kind("supersede", replace(ahead, status="failed")) == "in_progress"
    queue = [ahead]
    for _ in range(LONGEST_QUEUE):
        id_ = uuid.uuid4()
        key = f"wall/1/behind/{id_}"
        queue.append(replace(ahead, saga_id=id_, business_key=key, behind=queue[-1].saga_id))
    assert kind("wait", *queue[:-1]) == "waits"
    assert kind("wait", *queue) == "in_progress"


@pytest.mark.parametrize("status", ["running", "failed"])
@pytest.mark.parametrize("policy", ["refuse", "wait", "supersede"])
def test_a_saga_of_another_organization_is_neither_named_nor_stopped(
    policy: OnConflict, status: str
) -> None:
    mine, others = uuid.UUID(int=1), uuid.UUID(int=2)
    wanted = Admission("wall/1", organization_id=mine)
    ahead = OpenSaga(uuid.uuid4(), "paint-a-wall", status, "wall/1", others, "theirs")
    said = weigh(policy, uuid.uuid4(), wanted, [ahead])
    assert isinstance(said, Refusal)
    assert (said.code, said.existing_instance) == ("in_progress", None)
    assert said.message.startswith("the business key is in use")
    for whose in (None, mine):  # what is of one's own, or of nobody, is as it was
        told = weigh(policy, uuid.uuid4(), wanted, [replace(ahead, organization_id=whose)])
        assert isinstance(told, Admission) or str(ahead.saga_id) in told.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"on_conflict": "queue"}, "on_conflict is 'queue'; it is refuse, wait or supersede"),
        ({"on_conflict": {"x": "stop"}}, "on_conflict is 'stop'"),
        ({"business_key": None, "key_scope": None}, "has none: give it business_key"),
        ({"business_key": None, "on_conflict": "refuse"}, "has none: give it business_key"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_when_it_is_written_down(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(DefinitionError) as refused:
        replace(PAINT, **wrong)
    assert said in str(refused.value)


async def fail(_ctx: Context) -> Outcome:
    return Rejected("no", "no")


async def stuck(_ctx: Context) -> Outcome:
    raise RuntimeError("stuck")


async def test_an_undo_is_tried_as_often_as_it_says(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    hard = Saga(
        name="hard-to-undo",
        version=1,
        command="wall.paint",
        input=Paint,
        steps=(
            compensatable(
                "enter",
                do=enter,
                undo=stuck,
                retry=Retry(attempts=5),
                undo_retry=Retry(attempts=2, first=0.01),
            ),
            compensatable("work", do=fail, undo=leave),
        ),
    )
    async with running_worker(settings, building(Site(), hard)):
        saga = await outcome(pool, await publish(redis, paint(1)))
    assert (saga.status, saga.step, saga.direction) == ("failed", "enter", "compensation")
    assert (await story(pool, saga)).count("compensation.started enter") == 2
    with pytest.raises(DefinitionError, match="has undo_retry and no undo"):
        replace(hard, steps=(replace(TEAR.steps[0], undo_retry=Retry()),))
