"""Workers that are killed, stopped and woken: nothing is lost, and nothing is done twice."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.support.driving import (
    contradictions,
    count,
    create,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.sampled import sampled
from tests.support.waiting import eventually


class WorkerProcess(Protocol):
    """See the conftest beside."""

    @property
    def up(self) -> bool: ...
    @property
    def said(self) -> str: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...
    def wake(self) -> None: ...
    def leave(self) -> int | None: ...


Spawn = Callable[[], WorkerProcess]

_CREATING = """
SELECT count(*) FROM evosaga.saga_events AS one WHERE saga_id = ANY($1::uuid[])
AND type = 'step.started' AND data ->> 'step' = 'evolution' AND NOT EXISTS (
    SELECT FROM evosaga.saga_events AS later
    WHERE later.saga_id = one.saga_id AND later.sequence > one.sequence)
"""


async def heard_of(evolution: SimulatedEvolution, entries: int) -> None:
    """Wait until Evolution has been asked so often."""
    await eventually(lambda: len(evolution.journal.entries) >= entries, 20)


async def are_creating(pool: Pool, ids: list[str], attempts: int) -> None:
    """Wait until so many of these are in the first step, which is slow."""

    async def claimed() -> bool:
        return await count(pool, _CREATING, ids) >= attempts

    await eventually(claimed, every=0.002)


async def is_attempted(pool: Pool, saga_id: str, step: str = "evolution") -> None:
    """Wait until an attempt of the step is claimed."""

    async def claimed() -> bool:
        return (
            await count(
                pool,
                "SELECT count(*) FROM evosaga.saga_events "
                "WHERE saga_id = $1 AND type = 'step.started' AND data ->> 'step' = $2",
                uuid.UUID(saga_id),
                step,
            )
            > 0
        )

    await eventually(claimed, message=f"an attempt of {step}")


@pytest.mark.fault("i1")
@pytest.mark.parametrize("kills", sampled([2, 4], keep=[2]))
async def test_workers_that_are_killed_at_any_moment_lose_nothing_and_repeat_nothing(
    kills: int, spawn: Spawn, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    rng = random.Random(20)
    evolution.arm("slow", operation="create", times=None, seconds=0.1)
    evolution.arm("slow_after", operation="create", times=None, seconds=0.1)
    workers = [spawn() for _ in range(3)]
    await eventually(lambda: all(worker.up for worker in workers), 20)
    ids: list[str] = []
    for kill in range(kills):
        heard = len(evolution.journal.entries) + rng.randint(5, 25)
        ids += await asyncio.gather(*(publish(redis, create()) for _ in range(20)))
        if kill == kills // 2:  # all at once, while Evolution is asked
            await are_creating(pool, ids[-20:], rng.randint(3, 15))
            for worker in workers:
                worker.kill()
            workers = [spawn() for _ in range(3)]
        await heard_of(evolution, heard)
        victim = rng.randrange(3)
        workers[victim].kill()
        workers[victim] = spawn()
    views = [await outcome(pool, id_, 40) for id_ in ids]
    await eventually(lambda: nothing_pending(redis), 20)
    statuses = Counter(view.status for view in views)
    lost = await pool.fetchval(
        "SELECT count(*) FROM evosaga.saga_events WHERE data ->> 'code' = 'worker_lost'"
    )
    print(f"{statuses}; {lost} attempts were lost with their workers")
    assert lost > 0
    assert set(statuses) <= {"completed", "compensated"}
    completed = {str(view.instance_name) for view in views if view.status == "completed"}
    assert set(evolution.rows()) == set(evolution.live()) == completed
    created = Counter(e.name for e in evolution.journal if e.applied == "created")
    assert set(created.values()) == {1}
    rows = await pool.fetch("SELECT config ->> 'instance_name' FROM healthcare.integrations")
    assert {row[0] for row in rows} == completed
    assert len(await redis.keys("whatsapp:instance:*")) == len(completed)
    assert await contradictions(pool) == []
    assert await redis.xlen(streams.DEAD_COMMANDS) == 0


@pytest.mark.fault("b3")
async def test_a_saga_is_taken_over_within_seconds_of_its_workers_death(
    spawn: Spawn, settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """The instance was made, its maker died before it could say so: adopted, not made again."""
    evolution.arm("hang_after", operation="create")
    first = spawn()
    await eventually(lambda: first.up, 20)
    id_ = await publish(redis, create())
    await eventually(lambda: f"wa-{id_}" in evolution.live())
    async with running_worker(settings):
        first.kill()
        began = time.perf_counter()
        saga = await outcome(pool, id_)
        took = time.perf_counter() - began
    print(f"taken over and completed {took:.1f} s after kill -9, with a lease of 1 s")
    assert took < 15
    assert saga.status == "completed"
    assert (await story(pool, saga))[:5] == [
        "saga.started",
        "step.started evolution",
        "step.failed evolution",
        "step.started evolution",
        "step.succeeded evolution",
    ]
    assert len(evolution.journal.requests("create")) <= 1


@pytest.mark.fault("b8")
async def test_a_zombie_sends_nothing_and_writes_nothing_when_it_wakes(
    spawn: Spawn, settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Stopped while its create is out; by the time it wakes another has finished the saga."""
    evolution.arm("slow_after", operation="create", seconds=0.3)
    zombie = spawn()
    await eventually(lambda: zombie.up, 20)
    id_ = await publish(redis, create())
    await eventually(lambda: f"wa-{id_}" in evolution.live())
    zombie.stop()
    async with running_worker(settings):
        saga = await outcome(pool, id_)
        assert saga.status == "completed"
        length, heard = saga.sequence, len(evolution.journal.entries)
        await eventually(lambda: len(evolution.journal.requests("create")) == 1)
        heard = len(evolution.journal.entries)
        zombie.wake()
        await eventually(lambda: "attempt_abandoned" in zombie.said)
    assert (await outcome(pool, id_)).sequence == length
    assert len(evolution.journal.entries) == heard
    assert await contradictions(pool) == []
    # It is a worker like any other again.
    assert (await outcome(pool, await publish(redis, create()))).status == "completed"
    assert zombie.leave() == 0


@pytest.mark.fault("i2")
async def test_a_graceful_stop_finishes_what_is_out_and_burns_no_attempt(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", times=None, seconds=1.5)
    async with running_worker(settings):
        ids = [await publish(redis, create()) for _ in range(10)]
        for id_ in ids:
            await is_attempted(pool, id_)
    evolution.disarm()
    left = await pool.fetch("SELECT status, step, owner FROM evosaga.sagas")
    assert {tuple(row) for row in left} == {("running", "postgres", None)}
    async with running_worker(settings):
        for id_ in ids:
            saga = await outcome(pool, id_)
            assert saga.status == "completed"
            assert not [line for line in await story(pool, saga) if line.startswith("step.failed")]
    assert len(evolution.journal.requests("create")) == 10
    assert await contradictions(pool) == []


@pytest.mark.fault("b14")
async def test_a_wait_between_attempts_outlives_the_worker(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Held for two seconds by its first worker, gone on by the second: neither early nor anew."""
    evolution.arm("429", operation="create", retry_after=2)
    async with running_worker(settings):
        id_ = await publish(redis, create())
        await eventually(lambda: len(evolution.journal.requests("create")) == 1)

        async def held() -> bool:
            return (
                await count(
                    pool, "SELECT count(*) FROM evosaga.saga_events WHERE type = 'step.failed'"
                )
                == 1
            )

        await eventually(held)
    async with running_worker(settings):
        saga = await outcome(pool, id_)
    assert saga.status == "completed"
    times = await pool.fetch(
        "SELECT type, recorded_at FROM evosaga.saga_events WHERE saga_id = $1 "
        "AND data ->> 'step' = 'evolution' ORDER BY sequence",
        uuid.UUID(id_),
    )
    assert [row["type"] for row in times] == [
        "step.started", "step.failed", "step.started", "step.succeeded"
    ]  # fmt: skip
    waited = (times[2]["recorded_at"] - times[1]["recorded_at"]).total_seconds()
    assert 1.9 < waited < 4


@pytest.mark.fault("i1")
async def test_sigterm_ends_a_worker_with_exit_code_0(spawn: Spawn, redis: Redis) -> None:
    worker = spawn()
    await eventually(lambda: worker.up, 20)
    assert await asyncio.to_thread(worker.leave) == 0
    assert "worker is down" in worker.said
