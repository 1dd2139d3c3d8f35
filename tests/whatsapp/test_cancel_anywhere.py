"""B13: a cancel at any moment ends a saga completed or compensated, never in between.

The sagas here are the product's own, with a barrier before and behind every step: the saga stands
still there, is cancelled, and goes on.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history
from evosaga.sagas.definition import Effect, InCommit, Saga, Step
from evosaga.sagas.outcome import Outcome
from evosaga.sagas.registry import SagaRegistry, registry_of
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    delete,
    impatient,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.laws import chronicle
from tests.support.waiting import eventually

Side = Literal["before", "behind"]
BAILEYS = "WHATSAPP-BAILEYS"


@dataclass
class Barrier:
    """Stops the first saga that comes by at one side of one step of one direction."""

    saga: str
    step: str
    direction: Literal["do", "undo"]
    side: Side
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    lifted: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_(self, saga: str, step: str, direction: str, side: Side) -> None:
        if (saga, step, direction, side) == (self.saga, self.step, self.direction, self.side):
            self.reached.set()
            await self.lifted.wait()


def fenced(barriers: Sequence[Barrier]) -> SagaRegistry:
    """All sagas, with the barriers before and behind every effect; a list may change meanwhile."""

    async def pass_(saga: str, step: str, direction: str, side: Side) -> None:
        for barrier in barriers:
            await barrier.pass_(saga, step, direction, side)

    def effect(saga: str, step: str, direction: str, real: Effect | InCommit) -> Effect | InCommit:
        if isinstance(real, InCommit):

            async def joined(connection: Any, contexts: Sequence[Any]) -> Sequence[Outcome]:
                await pass_(saga, step, direction, "before")
                said = await real.run(connection, contexts)
                await pass_(saga, step, direction, "behind")
                return said

            return InCommit(joined)

        async def alone(ctx: Any) -> Outcome:
            await pass_(saga, step, direction, "before")
            said = await real(ctx)
            await pass_(saga, step, direction, "behind")
            return said

        return alone

    def fence(saga: Saga) -> Saga:
        steps = (
            replace(
                step,
                do=effect(saga.name, step.name, "do", step.do),
                undo=effect(saga.name, step.name, "undo", step.undo) if step.undo else None,
            )
            for step in saga.steps
        )
        return replace(saga, steps=tuple(steps))

    return registry_of(fence(saga) for saga in impatient(4).versions.values())


@dataclass
class Stage:
    pool: Pool
    redis: Redis
    evolution: SimulatedEvolution
    settings: Settings
    attempts: int = 4

    async def cancel(self, saga_id: str, id_: str = "") -> None:
        wish = {"id": id_ or str(uuid.uuid4()), "type": "saga.cancel"}
        await publish(self.redis, wish | {"data": {"saga_id": saga_id}})

    async def cancelled(self, saga_id: str) -> None:
        """The cancel was heard: it is in the log, or among the dead letters."""

        async def heard() -> bool:
            told = await history(self.pool, uuid.UUID(saga_id))
            asked = any(r.event.type == "saga.cancel_requested" for r in told)
            return asked or await self.redis.xlen(streams.DEAD_COMMANDS) > 0

        await eventually(heard)

    async def everything_is_there(self, saga: SagaView) -> bool:
        """All three stores have the instance; False when none has. Anything else fails."""
        name = str(saga.instance_name)
        rows = await self.pool.fetch(
            "SELECT status FROM healthcare.integrations WHERE config ->> 'instance_name' = $1", name
        )
        key = await self.redis.exists(f"whatsapp:instance:{name}")
        found = {
            name in self.evolution.live(),
            name in self.evolution.rows(),
            len(rows) == 1,
            bool(key),
        }
        assert len(found) == 1, "half of it is there"
        assert not rows or rows[0]["status"] != "deleting"
        return found.pop()

    async def lawful(self) -> None:
        assert await contradictions(self.pool) == []
        for saga in (CREATE_INTEGRATION, DELETE_INTEGRATION):
            ids = await self.pool.fetch(
                "SELECT saga_id FROM evosaga.sagas WHERE saga = $1 AND status <> 'rejected'",
                saga.name,
            )
            known = impatient(self.attempts).versions[saga.name, saga.version]
            for row in ids:
                told = await history(self.pool, row["saga_id"])
                chronicle(known, [recorded.event for recorded in told])


@pytest.fixture
async def stage(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> AsyncIterator[Stage]:
    stage = Stage(pool, redis, evolution, settings)
    yield stage
    await stage.lawful()


def moments(saga: Saga) -> list[tuple[Step, Side]]:
    return [(step, side) for step in saga.steps for side in ("before", "behind")]


@pytest.fixture
async def barriers(settings: Settings, redis: Redis) -> AsyncIterator[list[Barrier]]:
    """Those that stand in the way of a worker that runs: one worker meets them all."""
    barriers: list[Barrier] = []
    async with running_worker(settings, fenced(barriers)):
        yield barriers


@pytest.mark.fault("b13")
async def test_a_create_that_is_cancelled_at_any_moment_is_whole_or_nothing(
    stage: Stage, barriers: list[Barrier], subtests: pytest.Subtests
) -> None:
    for step, side in moments(CREATE_INTEGRATION):
        with subtests.test(f"{side} {step.name}"):
            await stage.redis.delete(streams.DEAD_COMMANDS)
            barrier = Barrier("create-integration", step.name, "do", side)
            barriers[:] = [barrier]
            command = create(channel=BAILEYS)
            await publish(stage.redis, command)
            await asyncio.wait_for(barrier.reached.wait(), 20)
            await stage.cancel(command["id"])
            joins = isinstance(step.do, InCommit)
            if not joins:  # else the cancel waits behind this very commit
                await stage.cancelled(command["id"])
            barrier.lifted.set()
            saga = await outcome(stage.pool, command["id"], 30)
            await eventually(lambda: nothing_pending(stage.redis))
            assert saga.status in ("completed", "compensated")
            assert await stage.everything_is_there(saga) is (saga.status == "completed")
            if step.name in ("evolution", "cache"):
                assert (saga.status, saga.code) == ("compensated", "cancelled")
            if step.name in ("notify", "pair"):
                assert saga.status == "completed"
                assert [d["code"] for d in await dead_letters(stage.redis)] == ["not_cancellable"]


@pytest.mark.fault("b13")
async def test_a_delete_that_is_cancelled_at_any_moment_is_whole_or_nothing(
    stage: Stage, barriers: list[Barrier], subtests: pytest.Subtests
) -> None:
    for step, side in moments(DELETE_INTEGRATION):
        with subtests.test(f"{side} {step.name}"):
            await stage.redis.delete(streams.DEAD_COMMANDS)
            barrier = Barrier("delete-integration", step.name, "do", side)
            barriers[:] = [barrier]
            made = await outcome(stage.pool, await publish(stage.redis, create()), 30)
            command = delete(str(made.instance_name))
            await publish(stage.redis, command)
            await asyncio.wait_for(barrier.reached.wait(), 20)
            await stage.cancel(command["id"])
            if not isinstance(step.do, InCommit):
                await stage.cancelled(command["id"])
            barrier.lifted.set()
            saga = await outcome(stage.pool, command["id"], 30)
            await eventually(lambda: nothing_pending(stage.redis))
            assert saga.status in ("completed", "compensated")
            assert await stage.everything_is_there(saga) is (saga.status == "compensated")
            if step.name in ("cache", "notify"):
                assert saga.status == "completed"


@pytest.mark.fault("b13")
async def test_a_cancel_while_a_create_is_being_undone_changes_nothing(
    stage: Stage, barriers: list[Barrier], subtests: pytest.Subtests
) -> None:
    sides: tuple[Side, Side] = ("before", "behind")
    for step, side in product(("cache", "postgres", "evolution"), sides):
        with subtests.test(f"{side} {step}"):
            barrier = Barrier("create-integration", step, "undo", side)
            reach_the_end = Barrier("create-integration", "cache", "do", "behind")
            barriers[:] = [reach_the_end, barrier]
            command = create()
            await publish(stage.redis, command)
            await asyncio.wait_for(reach_the_end.reached.wait(), 20)
            await stage.cancel(command["id"])
            await stage.cancelled(command["id"])
            reach_the_end.lifted.set()
            await asyncio.wait_for(barrier.reached.wait(), 20)
            await stage.cancel(command["id"])
            barrier.lifted.set()
            saga = await outcome(stage.pool, command["id"], 30)
            await eventually(lambda: nothing_pending(stage.redis))
            assert (saga.status, saga.code) == ("compensated", "cancelled")
            assert await stage.everything_is_there(saga) is False
            assert (await story(stage.pool, saga)).count("compensation.began") == 1


@pytest.mark.fault("b13")
async def test_a_cancel_right_behind_its_create_leaves_nothing(stage: Stage) -> None:
    """Both are there before the first worker, so it reads them in one batch."""
    commands = [create() for _ in range(10)]
    # Half of them are surely under way when their cancel is obeyed; the others race with it.
    stage.evolution.arm("slow", operation="create", times=5, seconds=0.5)
    for command in commands:
        await publish(stage.redis, command)
        await stage.cancel(command["id"])
    async with running_worker(stage.settings, impatient(4)):
        sagas = [await outcome(stage.pool, command["id"], 30) for command in commands]
        await eventually(lambda: nothing_pending(stage.redis))
    for saga in sagas:
        assert saga.status in ("completed", "compensated")
        assert await stage.everything_is_there(saga) is (saga.status == "completed")
    assert [saga.status for saga in sagas].count("compensated") > 0


@pytest.mark.fault("b13")
async def test_a_cancel_before_its_create_is_a_dead_letter(stage: Stage) -> None:
    command = create()
    async with running_worker(stage.settings):
        await stage.cancel(command["id"])
        await eventually(lambda: stage.redis.xlen(streams.DEAD_COMMANDS))
        saga = await outcome(stage.pool, await publish(stage.redis, command))
    assert saga.status == "completed"
    assert [d["code"] for d in await dead_letters(stage.redis)] == ["unknown_saga"]


@pytest.mark.fault("b13")
async def test_the_same_cancel_twice_and_another_are_as_good_as_one(stage: Stage) -> None:
    barrier = Barrier("create-integration", "evolution", "do", "behind")
    async with running_worker(stage.settings, fenced([barrier])):
        command = create()
        await publish(stage.redis, command)
        await asyncio.wait_for(barrier.reached.wait(), 20)
        for id_ in ("once", "once", "again"):
            await stage.cancel(command["id"], id_)
        await eventually(lambda: nothing_pending(stage.redis))
        barrier.lifted.set()
        saga = await outcome(stage.pool, command["id"], 30)
    lines = await story(stage.pool, saga)
    assert (saga.status, saga.code) == ("compensated", "cancelled")
    assert (lines.count("saga.cancel_requested"), lines.count("compensation.began")) == (2, 1)
    assert await stage.redis.xlen(streams.DEAD_COMMANDS) == 0


@pytest.mark.fault("b13")
async def test_a_cancel_of_a_parked_undo_goes_on_undoing(stage: Stage) -> None:
    stage.evolution.arm("5xx_before", operation="delete", times=None)
    stage.attempts = 1
    async with running_worker(stage.settings, impatient(1)):
        command = create()
        await stage.redis.set(f"evosaga:removed:wa-{command['id']}", command["id"])
        await publish(stage.redis, command)
        assert (await outcome(stage.pool, command["id"], 30)).status == "failed"
        stage.evolution.disarm()
        await stage.cancel(command["id"])
        await stage.cancelled(command["id"])
        saga = await outcome(stage.pool, command["id"], 30)
    assert saga.status == "compensated"
    assert await stage.everything_is_there(saga) is False


@pytest.mark.fault("b13")
async def test_a_cancel_of_a_saga_that_is_over_changes_nothing(stage: Stage) -> None:
    """One who only asks whether it is still possible is not told that it is not."""
    async with running_worker(stage.settings):
        saga = await outcome(stage.pool, await publish(stage.redis, create()))
        for if_possible, told in ((True, set[str]()), (False, {"not_cancellable", "unknown_saga"})):
            for saga_id in (str(saga.saga_id), str(uuid.uuid4())):
                data: dict[str, Any] = {"saga_id": saga_id, "if_possible": if_possible}
                wish = {"id": str(uuid.uuid4()), "type": "saga.cancel", "data": data}
                await publish(stage.redis, wish)
            await eventually(lambda: nothing_pending(stage.redis))
            after = await find_saga(stage.pool, str(saga.saga_id))
            assert after == saga
            codes = {d["code"] for d in await dead_letters(stage.redis)}  # in any order
            assert codes == told
