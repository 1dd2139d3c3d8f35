"""Three workers with hardly any CPU: they are slow, and everything ends all the same.

Each is stopped nearly all the time and let run for a moment, over and over.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from tests.recovery.conftest import WorkerProcess
from tests.support.driving import contradictions, count, create, publish
from tests.support.waiting import eventually, wait_until

RUNS, STANDS = 0.02, 0.3
"""Seconds that one worker of three may run, and that all of them stand still after each round."""
MANY = 20


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With time enough for a call: what is tried here is the lease."""
    return settings.model_copy(update={"evolution_timeout": 30.0})


@contextmanager
def starved(workers: list[WorkerProcess]) -> Iterator[None]:
    """Inside, only one of them runs at a time, and only for a moment."""
    over = threading.Event()

    def keep_down() -> None:
        for worker in itertools.cycle(workers):
            worker.wake()
            over.wait(RUNS)
            worker.stop()
            if over.wait(STANDS / len(workers)):
                break

    for worker in workers:
        worker.stop()
    thread = threading.Thread(target=keep_down, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for worker in workers:
            worker.wake()


@pytest.mark.long
async def test_workers_with_hardly_any_cpu_take_less_and_end_what_they_take(
    spawn: Callable[[], WorkerProcess], pool: Pool, redis: Redis
) -> None:
    workers = [spawn() for _ in range(3)]
    wait_until(lambda: all(worker.up for worker in workers), 60)
    with starved(workers):
        for _ in range(MANY):
            await publish(redis, create())
        done = "SELECT count(*) FROM evosaga.sagas WHERE status = 'completed'"

        async def all_done() -> bool:
            return await count(pool, done) == MANY

        await eventually(all_done, 180, 0.5, message="all of them to be completed")
    assert await contradictions(pool) == []
