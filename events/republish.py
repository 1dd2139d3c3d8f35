"""Publishes events from Postgres to ``evosaga:events`` again, at an operator's request.

When Redis loses its data, the relay republishes by itself. This is for losses that the relay cannot
detect: a consumer that lost what it had read, or deleted entries.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from redis.asyncio import Redis

from evosaga.events import log_loss, relay_position, streams
from evosaga.events.cloudevents import read_batch
from evosaga.events.database import Pool
from evosaga.events.relay import OnRewind, Relay, nothing_else, position_at

_BATCH: Final = 1000
_POLL: Final = 0.1

OnProgress: TypeAlias = Callable[[int, int], None]
"""Called now and then with (events republished so far, events in all)."""


async def republish_from(
    pool: Pool,
    redis: Redis,
    me: str,
    since: datetime,
    progress: OnProgress,
    on_rewind: OnRewind = nothing_else,
) -> int:
    """Publish everything since then again, each saga's events in order; returns how many.

    The relay is sent back to that point, so that nothing newer is published in between. A worker's
    relay does the work, or this process when no other leads. Interrupted, it continues by itself.
    Raises ``LogWentBack`` while that has stopped the relay, or when it does so meanwhile.
    """
    await log_loss.require_sound(pool)
    start = await position_at(pool, since)
    target = int(await pool.fetchval(_CURSOR, streams.EVENTS))
    if start >= target:
        return 0
    total = int(await pool.fetchval(_COUNT, start, target))
    counted, done = start, 0
    await relay_position.go_back(redis, start)
    relay = Relay(pool, redis, me, on_rewind)
    try:
        while (told := (await relay_position.read(redis)).up_to or start) < target:
            if told > counted:  # only what is new: all of it again and again would be quadratic
                done += int(await pool.fetchval(_COUNT, counted, told))
                counted = told
            progress(done, total)
            if not await relay.pump():
                await log_loss.require_sound(pool)
                await asyncio.sleep(_POLL)
    finally:
        await relay.resign()
    progress(total, total)
    return total


async def republish_between(
    pool: Pool,
    redis: Redis,
    since: datetime,
    until: datetime,
    progress: OnProgress,
    on_rewind: OnRewind = nothing_else,
) -> int:
    """Publish again what was recorded from ``since`` to ``until``, to within a minute.

    The relay continues meanwhile, and later events were published before: consumers get known ids
    and must deduplicate. Raises ``LogWentBack`` as above.
    """
    await log_loss.require_sound(pool)
    epoch = await log_loss.epoch(pool)
    position = await position_at(pool, since)
    cursor = int(await pool.fetchval(_CURSOR, streams.EVENTS))
    end = min(cursor, await position_at(pool, until + timedelta(minutes=2)))
    total, done = int(await pool.fetchval(_COUNT, position, end)), 0
    await on_rewind(pool, since)
    while done < total and (
        batch := await read_batch(pool, position, end, min(_BATCH, total - done), epoch=epoch)
    ):
        await streams.publish_events(redis, batch.events, batch.commands)
        position, done = batch.last, done + len(batch.events)
        progress(done, total)
    return done


_CURSOR: Final = "SELECT position FROM evosaga.relay WHERE stream = $1"
_COUNT: Final = "SELECT count(*) FROM evosaga.saga_events WHERE position > $1 AND position <= $2"
