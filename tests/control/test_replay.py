"""A replay looks at the world before it does anything: real stores, changed behind its back."""

import asyncio
import itertools
import json
import uuid
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.commands import BadCommand
from evosaga.events.database import Pool
from evosaga.events.model import SagaResumed
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.control import apply_control
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.commands.replay import plan_of
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, history
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.steps import routing_key
from tests.control.conftest import Gossip, command, parked, send
from tests.support.driving import (
    count,
    create,
    dead_letters,
    delete,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.waiting import eventually
from tests.support.workers import Worker


async def replayed(pool: Pool, redis: Redis, saga: SagaView) -> SagaView:
    before = saga.sequence
    await send(redis, "saga.replay", saga)

    async def moved() -> bool:
        view = await outcome(pool, str(saga.saga_id))
        return view.sequence > before

    await eventually(moved, message="the replay to be obeyed")
    return await outcome(pool, str(saga.saga_id))


async def redone(pool: Pool, saga: SagaView) -> list[tuple[str, ...] | None]:
    """What each replay of the saga did again."""
    told = await history(pool, saga.saga_id)
    return [r.event.redo for r in told if isinstance(r.event, SagaResumed)]


async def refusals(redis: Redis) -> list[tuple[str, str]]:
    return [(letter["code"], letter["message"]) for letter in await dead_letters(redis)]


@pytest.mark.fault("m1")
async def test_in_an_unchanged_world_a_replay_does_only_what_was_left(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, gossip: Gossip
) -> None:
    saga = await parked(pool, redis)
    made = len(evolution.journal.requests("create"))
    gossip.refuses = False
    again = await replayed(pool, redis, saga)
    assert again.status == "completed"
    assert await redone(pool, saga) == [None]
    assert len(evolution.journal.requests("create")) == made


STEPS = ("evolution", "postgres", "cache")


@pytest.mark.fault("m1")
async def test_what_is_gone_is_done_again_before_the_saga_goes_on(
    worker: Worker,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    gossip: Gossip,
    subtests: pytest.Subtests,
) -> None:
    for flags in itertools.product((True, False), repeat=len(STEPS)):
        gone = dict(zip(STEPS, flags, strict=True))
        with subtests.test(str(gone)):
            gossip.refuses = True
            await is_done_again(worker, pool, redis, evolution, gossip, gone)


async def is_done_again(
    worker: Worker,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    gossip: Gossip,
    gone: dict[str, bool],
) -> None:
    saga = await parked(pool, redis)
    name = str(saga.instance_name)
    mine = "healthcare.integrations WHERE config ->> 'instance_name' = $1"
    assert name in evolution.live()
    if gone["evolution"]:
        evolution.drop(name)
    if gone["postgres"]:
        await pool.execute(f"DELETE FROM {mine}", name)
    if gone["cache"]:
        await redis.delete(routing_key.key(name))
    expected = tuple(step for step, is_gone in gone.items() if is_gone)

    plan = await plan_of(pool, worker.services, gossip.registry(), saga.saga_id)
    assert plan.allowed
    assert plan.redo == expected
    told = {line.step: line.action for line in plan.lines}
    assert told == {step: "redo" if is_gone else "reuse" for step, is_gone in gone.items()} | {
        "notify": "redo",
        "pair": "redo",
    }

    gossip.refuses = False
    again = await replayed(pool, redis, saga)
    assert again.status == "completed"
    assert await redone(pool, saga) == [expected or None]
    assert name in evolution.live()
    assert await count(pool, f"SELECT count(*) FROM {mine}", name) == 1
    assert await redis.exists(routing_key.key(name))


@pytest.mark.fault("m1")
@pytest.mark.parametrize("where", ["evolution", "postgres"])
async def test_what_is_somebody_elses_by_now_stops_the_replay_and_is_left_alone(
    worker: Worker,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    gossip: Gossip,
    where: str,
) -> None:
    saga = await parked(pool, redis)
    name = str(saga.instance_name)
    if where == "evolution":
        evolution.foreign(name)
    else:
        await pool.execute(
            "UPDATE healthcare.integrations SET id = gen_random_uuid(), "
            """config = '{"instance_name": "somebody-elses"}'"""
        )
    gossip.refuses = False
    await send(redis, "saga.replay", saga)
    await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
    ((code, message),) = await refusals(redis)
    assert code == "blocked"
    assert f"step {where} is blocked" in message
    plan = await plan_of(pool, worker.services, gossip.registry(), saga.saga_id)
    assert (plan.allowed, plan.headline) == (False, f"refused: {message}")
    assert {line.step: line.action for line in plan.lines}[where] == "blocked"
    still = await outcome(pool, str(saga.saga_id))
    assert (still.status, still.sequence) == ("failed", saga.sequence)
    assert name in evolution.live()
    assert evolution.journal.requests("delete") == []


@pytest.mark.fault("m1")
async def test_a_server_that_does_not_answer_is_no_reason_to_do_anything_again(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, gossip: Gossip
) -> None:
    saga = await parked(pool, redis)
    await evolution.stop()
    plan = await plan_of(pool, worker.services, gossip.registry(), saga.saga_id)
    told = {line.step: line for line in plan.lines}
    assert (told["evolution"].action, told["postgres"].action) == ("blocked", "reuse")
    assert told["evolution"].evidence
    assert plan.allowed
    gossip.refuses = False
    again = await replayed(pool, redis, saga)
    assert again.status == "completed", "what was left needs no Evolution"
    assert await redone(pool, saga) == [None]


async def test_a_plan_changes_nothing(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, gossip: Gossip
) -> None:
    stuck = await parked(pool, redis)
    evolution.arm("reject", operation="create", message="Invalid integration")
    undone = await outcome(pool, await publish(redis, create()))
    assert undone.status == "compensated"
    evolution.drop(str(stuck.instance_name))
    everything = (
        "SELECT array_agg(e ORDER BY position)::text || (SELECT array_agg(s)::text FROM "
        "(SELECT saga_id, status, next_sequence FROM evosaga.sagas ORDER BY saga_id) AS s) "
        "|| (SELECT array_agg(i)::text FROM healthcare.integrations AS i) "
        "FROM evosaga.saga_events AS e"
    )
    await eventually(lambda: nothing_pending(redis))
    before = await pool.fetchval(everything), sorted(await redis.keys("*"))
    seen = len(evolution.journal.requests())
    for saga in (stuck, undone):
        assert (await plan_of(pool, worker.services, gossip.registry(), saga.saga_id)).allowed
    assert (await pool.fetchval(everything), sorted(await redis.keys("*"))) == before
    asked = evolution.journal.requests()[seen:]
    assert asked, "it looked"
    assert {request.method for request in asked} == {"GET"}


async def test_a_plan_for_a_rolled_back_create_asks_whether_it_would_be_accepted_now(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, gossip: Gossip
) -> None:
    gossip.refuses = False
    evolution.arm("reject", operation="create", message="Invalid integration")
    wish = create(instance_name="clinic-of-the-sun")
    undone = await outcome(pool, await publish(redis, wish))
    assert undone.status == "compensated"

    free = await plan_of(pool, worker.services, discover(), undone.saga_id)
    assert (free.allowed, free.anew) == (True, True)
    assert {line.action for line in free.lines} == {"redo"}

    evolution.foreign("clinic-of-the-sun")
    taken = await plan_of(pool, worker.services, discover(), undone.saga_id)
    assert (taken.allowed, taken.code) == (False, "blocked")
    assert "step evolution is blocked" in taken.headline
    evolution.drop("clinic-of-the-sun")

    organization = wish["data"]["organization_id"]
    other = await outcome(pool, await publish(redis, create(organization_id=organization)))
    assert other.status == "completed"
    exists = await plan_of(pool, worker.services, discover(), undone.saga_id)
    assert (exists.allowed, exists.code) == (False, "integration_exists")
    assert "already exists" in exists.headline
    assert await count(pool, "SELECT count(*) FROM evosaga.sagas") == 2, "only asked, not recorded"


async def test_what_is_over_or_on_its_way_has_a_plan_that_refuses(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip
) -> None:
    gossip.refuses = False
    wish = create()
    done = await outcome(pool, await publish(redis, wish))
    plan = await plan_of(pool, worker.services, discover(), done.saga_id)
    assert plan.headline == "refused: the saga is completed; there is nothing left to do"
    same = create(organization_id=wish["data"]["organization_id"])
    rejected = await outcome(pool, await publish(redis, same))
    plan = await plan_of(pool, worker.services, discover(), rejected.saga_id)
    assert plan.headline.startswith("refused: the saga was rejected")
    with pytest.raises(BadCommand, match="there is no saga"):
        await plan_of(pool, worker.services, discover(), uuid.uuid4())


@pytest.mark.fault("m2")
async def test_of_many_replays_at_once_one_wins_and_the_others_are_told_why_not(
    worker: Worker, pool: Pool, redis: Redis, gossip: Gossip
) -> None:
    saga = await parked(pool, redis)
    gossip.refuses = False
    gate = CommandHandler(pool, worker.log, worker.services, gossip.registry(), worker.engine)
    same = command("saga.replay", saga)
    wishes = [same, same, *(command("saga.replay", saga) for _ in range(8))]
    answers = await asyncio.gather(*map(gate.submit, wishes), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BadCommand)]
    assert {answer.code for answer in refused} <= {"not_replayable"}
    assert len(refused) >= 8
    again = await outcome(pool, str(saga.saga_id))
    assert again.status == "completed"
    assert (await story(pool, again)).count("saga.resumed") == 1
    assert (await story(pool, again)).count("step.succeeded notify") == 1


@pytest.mark.fault("m3")
async def test_a_replay_that_nobody_was_there_to_drive_is_taken_up_by_the_next_worker(
    settings: Settings, pool: Pool, redis: Redis, gossip: Gossip
) -> None:
    async with running_worker(settings, gossip.registry()) as worker:
        saga = await parked(pool, redis)
    gossip.refuses = False
    async with running_worker(settings, gossip.registry()) as worker:
        await worker.engine.stop(0)  # from here on it drives nothing, and dies
        gate = CommandHandler(pool, worker.log, worker.services, gossip.registry(), None)
        assert (await gate.submit(command("saga.replay", saga))).kind == "applied"
    async with running_worker(settings, gossip.registry()):
        again = await outcome(pool, str(saga.saga_id))
    assert again.status == "completed"


@pytest.mark.fault("m4")
async def test_many_replays_do_not_hold_up_what_comes_behind_them(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution, gossip: Gossip
) -> None:
    """Twelve looks at a server that hangs, and a delete behind them in the stream."""
    stuck = [await publish(redis, create()) for _ in range(12)]
    sagas = [await outcome(pool, id_) for id_ in stuck]
    gossip.refuses = False
    evolution.arm("hang_before", operation="connectionState", times=None)
    pipeline = redis.pipeline(transaction=True)
    for saga in sagas:
        wish = {"id": str(uuid.uuid4()), "type": "saga.replay", "data": {"saga_id": saga.saga_id}}
        pipeline.xadd(streams.COMMANDS, {"data": json.dumps(wish, default=str)})
    behind = delete("there-is-no-such-instance")
    pipeline.xadd(streams.COMMANDS, {"data": json.dumps(behind)})
    await pipeline.execute()
    refused = await outcome(pool, behind["id"])
    assert refused.status == "rejected"

    async def all_resumed() -> bool:
        query = "SELECT count(*) FROM evosaga.saga_events WHERE type = 'saga.resumed'"
        return await count(pool, query) == len(sagas)

    await eventually(all_resumed, 30)
    first = await pool.fetchval(
        "SELECT min(recorded_at) FROM evosaga.saga_events WHERE type = 'saga.resumed'"
    )
    last = await pool.fetchval(
        "SELECT max(recorded_at) FROM evosaga.saga_events WHERE type = 'saga.resumed'"
    )
    assert refused.created_at < first, "the one behind them was not held up"
    assert (last - first).total_seconds() < 20, "they looked at the same time"


@pytest.mark.fault("m4")
async def test_a_replay_that_looks_around_for_long_holds_nobody_up(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()

    async def looks_around(*told: Any) -> Any:
        await looked.wait()
        return await apply_control(*told)

    monkeypatch.setattr("evosaga.orchestrator.commands.handler.apply_control", looks_around)
    nobody = {"id": "long", "type": "saga.replay", "data": {"saga_id": str(uuid.uuid4())}}
    async with running_worker(settings):
        await publish(redis, nobody)
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        assert await dead_letters(redis) == []
        looked.set()
        await eventually(lambda: nothing_pending(redis))
    assert [code for code, _ in await refusals(redis)] == ["unknown_saga"]
