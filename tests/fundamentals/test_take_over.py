"""Lease and take-over: a saga belongs to one worker at a time, and outlives it.

A worker that stops, or is not heard of for as long as its lease, gives up its sagas. The next one
reads the history and goes on with the step that is due; where the old one may have left an effect
behind, it looks first.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.worker import running_worker
from tests.fundamentals.test_your_first_saga import HOTEL, order
from tests.support.driving import outcome, told
from tests.support.waiting import eventually


async def test_another_worker_ends_what_the_first_began(
    settings: Settings, redis: Redis, pool: Pool
) -> None:
    await redis.set("balance:ada", 100)
    await redis.rpush("room:112", "a list, so that to read it is an error")
    async with running_worker(settings, HOTEL):
        booking = await order(redis, room=112, guest="ada")
        await eventually(lambda: told(pool, booking, "step.failed reserve"))
    await redis.delete("room:112")

    async with running_worker(settings, HOTEL):
        saga = await outcome(pool, booking)

    assert saga.status == "completed"
    workers = await pool.fetchval(
        "SELECT count(DISTINCT data ->> 'worker') FROM evosaga.saga_events "
        "WHERE saga_id = $1 AND type = 'step.started'",
        saga.saga_id,
    )
    assert workers == 2
