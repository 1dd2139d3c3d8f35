"""Appends one after another or in parallel: how many a second, and what the relay adds.

The appenders run inside Postgres (a procedure that commits), so that no client limits them. A
commit is as slow as the disk, or as slow as a synchronous standby some milliseconds away.
"""

import asyncio
import contextlib
import json
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import asyncpg

from evosaga import migrations
from evosaga.events import append_order, relay_position, streams
from evosaga.events.database import Pool, open_pool
from evosaga.events.relay import Relay
from evosaga.orchestrator.local.postgres import local_postgres
from tests.harness.bench.measures import Result, Say, percentile
from tests.harness.bench.rig import Rig
from tests.support.standby import Pair, standby_of

MODES: Final = {"in order": False, "parallel": True}
APPENDERS: Final = (1, 4, 16)
AWAY: Final = 3
"""Milliseconds until the synchronous standby answers."""
_PACE: Final = 0.02
"""Seconds that each appender rests while the relay's delay is measured."""


async def appends(rig: Rig, seconds: float, rounds: int, say: Say) -> list[Result]:
    """(n): appends a second by mode and by number of appenders, on two kinds of servers."""
    database = await rig.fresh()
    await database.connection.close()
    found = await _place(rig, database.url, "local disk", seconds, rounds, say)
    async with _far_standby() as url:
        found += await _place(rig, url, f"standby {AWAY} ms away", seconds, rounds, say)
    return found


@contextlib.asynccontextmanager
async def _far_standby() -> AsyncIterator[str]:
    """A migrated database whose commits wait for a standby that takes its time."""
    with local_postgres() as primary, standby_of(primary) as standby:
        pair = Pair(primary, standby)
        await migrations.migrate(primary.url)
        for server, setting in (
            (standby, f"recovery_min_apply_delay = '{AWAY}ms'"),
            (primary, "synchronous_commit = 'remote_apply'"),
        ):
            connection = await asyncpg.connect(server.url)
            await connection.execute(f"ALTER SYSTEM SET {setting}")
            await connection.execute("SELECT pg_reload_conf()")
            await connection.close()
        await pair.be_synchronous()
        yield primary.url


async def _place(
    rig: Rig, url: str, where: str, seconds: float, rounds: int, say: Say
) -> list[Result]:
    pool = await open_pool(url, size=4)
    try:
        await pool.execute(_APPENDER)
        series: dict[str, list[float]] = {}
        for number in range(rounds):
            for count in APPENDERS:
                for name, parallel in MODES.items():
                    await append_order.switch(pool, parallel=parallel)
                    rate = await _rate(url, count, seconds)
                    series.setdefault(f"{count} {name}", []).append(rate)
                    what = f"{where}: {count} appenders, {name}: {rate:,.0f} appends/s"
                    say(f"round {number + 1} of {rounds}: {what}")
        values = {name: statistics.median(rates) for name, rates in series.items()}
        most = APPENDERS[-1]
        ratio = values[f"{most} parallel"] / values[f"{most} in order"]
        rates = Result("n", f"appends, {where}", values, "appends/s", ratio, series=series)
        delays: dict[str, float] = {}
        for name, parallel in MODES.items():
            await append_order.switch(pool, parallel=parallel)
            lags = await _delays(rig, pool, url, seconds)
            delays |= {f"{name} p{p}": percentile(lags, p / 100) for p in (50, 99)}
            say(f"{where}: on the stream, {name}: p50 {delays[f'{name} p50']:.0f} ms")
        return [rates, Result("n", f"until on the stream, {where}", delays, "ms")]
    finally:
        await pool.close()


async def _rate(url: str, appenders: int, seconds: float, pace: float = 0.0) -> float:
    """Appends a second of so many connections."""
    connections = [await asyncpg.connect(url) for _ in range(appenders)]
    try:
        began = time.perf_counter()
        calls = [c.fetchval(_CALL, uuid.uuid4(), seconds, pace) for c in connections]
        done: list[int] = await asyncio.gather(*calls)
        return sum(done) / (time.perf_counter() - began)
    finally:
        for connection in connections:
            connection.terminate()


async def _delays(rig: Rig, pool: Pool, url: str, seconds: float) -> list[float]:
    """Milliseconds from the beginning of an append to its entry, four of them at a time."""
    await rig.redis.flushall()
    await relay_position.go_back(rig.redis, await pool.fetchval(_AT_THE_END))
    relay = Relay(pool, rig.redis, uuid.uuid4().hex)
    running = asyncio.create_task(relay.run())
    try:
        await relay.pump()
        nudging = asyncio.create_task(_nudge(relay))
        await _rate(url, 4, seconds, _PACE)
        nudging.cancel()
        left = (
            "SELECT (SELECT max(position) FROM evosaga.saga_events) - position FROM evosaga.relay"
        )
        while await pool.fetchval(left):
            await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await relay.resign()
    entries: Any = await rig.redis.xrange(streams.EVENTS)
    lags = []
    for entry_id, fields in entries:
        recorded = datetime.fromisoformat(json.loads(fields[b"data"])["time"])
        lags.append(int(entry_id.split(b"-")[0]) - recorded.timestamp() * 1000)
    return lags


async def _nudge(relay: Relay) -> None:
    """As the commits of the leader's own worker do."""
    while True:
        await asyncio.sleep(_PACE)
        relay.nudge()


_APPENDER: Final = """
CREATE OR REPLACE PROCEDURE evosaga.bench_append(
    me uuid, seconds float8, pace float8, INOUT done bigint DEFAULT 0
) LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
    INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,
        command_hash, correlation_id, next_sequence)
    VALUES (me, 'create-integration', 1, 'running', me, me, 'h', me, 0);
    COMMIT;
    WHILE clock_timestamp() < until LOOP
        WITH moved AS (
            UPDATE evosaga.sagas SET next_sequence = next_sequence + 1
            WHERE saga_id = me AND next_sequence = done RETURNING next_sequence
        )
        INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
        SELECT me, next_sequence - 1, 'saga.completed', '{}', me FROM moved;
        COMMIT;
        done := done + 1;
        IF pace > 0 THEN
            PERFORM pg_sleep(pace);
        END IF;
    END LOOP;
END $$
"""
_AT_THE_END: Final = """
UPDATE evosaga.relay SET leader = NULL,
    position = (SELECT coalesce(max(position), 0) FROM evosaga.saga_events)
RETURNING position
"""
_CALL: Final = "CALL evosaga.bench_append($1, $2, $3)"
