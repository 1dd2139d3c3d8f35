"""(p): what Redis needs of memory while the relay catches up with what was committed without it.

A full hour is 37 million events (860 creates a second, twelve events each); here are as many as are
asked for, with the bound of ``EVOSAGA_EVENTS_MOST_BYTES`` far below what they take.
"""

import asyncio
from typing import Any, Final

from evosaga.events import streams
from evosaga.events.database import open_pool
from evosaga.events.relay import Relay
from evosaga.events.retention import Retention
from evosaga.orchestrator.maintenance.redis_memory import forecast
from tests.harness.bench.filling import fill
from tests.harness.bench.measures import Result, Say
from tests.harness.bench.rig import Rig

MOST_BYTES: Final = 32 * 1024**2
_OF_A_SAGA: Final = 12


async def catch_up(rig: Rig, events: int, say: Say) -> Result:
    """The peak of Redis's memory, and what ``doctor`` had announced before."""
    database = await rig.fresh()
    await fill(database.connection, events // _OF_A_SAGA, say)
    last = await database.connection.fetchval("SELECT max(position) FROM evosaga.saga_events")
    pool, keep = await open_pool(database.url, size=2), Retention(7 * 86400.0, MOST_BYTES)
    try:
        # The stream is as after an outage: it has what was told before, one entry here.
        await rig.redis.xadd(streams.EVENTS, {"data": "{}"})
        info: Any = await rig.redis.info("memory")
        told = await forecast(rig.redis, [streams.EVENTS], keep, [info])
        relaying = asyncio.create_task(Relay(pool, rig.redis, "bench", keep=keep).run())
        peak, behind = 0, True
        while behind:
            info = await rig.redis.info("memory")
            peak = max(peak, int(info["used_memory"]))
            reached = await pool.fetchval("SELECT max(position) FROM evosaga.relay")
            behind = (reached or 0) < last
            await asyncio.sleep(0.02)
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        left = int(await rig.redis.xlen(streams.EVENTS))
    finally:
        await pool.close()
        await database.connection.close()
    mb = 1024**2
    values = {
        "events caught up": float(events // _OF_A_SAGA * _OF_A_SAGA),
        "MB announced": told.announced / mb,
        "MB at most": peak / mb,
        "events left on the stream": float(left),
    }
    say(f"caught up: {values}")
    target, ratio = "never more than announced", peak / told.announced
    return Result("p", "Redis while it is caught up", values, "", ratio, target, ratio <= 1.0)
