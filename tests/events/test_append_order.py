"""The switch between appends in order and in parallel: safe both ways, and with older releases."""

import asyncio
from typing import Final

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga.events import append_order
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.relay import Relay
from tests.events.test_parallel_appends import appending
from tests.events.test_relay import committed, new_saga, pumped, tell
from tests.support.waiting import eventually

# As the releases before had them: everything above the cursor, and no term.
OLD_LEAD: Final = """
UPDATE evosaga.relay SET leader = $2, lease_until = now() + make_interval(secs => 5)
WHERE stream = $1 AND (leader = $2 OR leader IS NULL OR lease_until < now())
RETURNING position
"""
OLD_MOVE: Final = """
UPDATE evosaga.relay SET position = greatest(position, $3) WHERE stream = $1 AND leader = $2
"""


async def test_a_relay_of_an_older_release_gets_no_lease_while_appends_are_parallel(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    old = ("evosaga:events", "old")
    await tell(log, await new_saga(pool), 0)
    assert await pool.fetchval(OLD_LEAD, *old) == 0
    await append_order.switch(pool, parallel=True)
    assert await pool.execute(OLD_MOVE, *old, 1) == "UPDATE 0", "the switch has ended its lease"
    for _ in range(2):
        assert await pool.fetchval(OLD_LEAD, *old) is None
    new = Relay(pool, redis, "new")
    await pumped(new)
    await new.resign()
    assert await pool.fetchval(OLD_LEAD, *old) is None
    await append_order.switch(pool, parallel=False)
    assert await pool.fetchval(OLD_LEAD, *old) == 1


async def test_appends_are_not_made_parallel_under_a_living_worker_of_an_older_release(
    pool: Pool,
) -> None:
    await pool.execute(
        "INSERT INTO evosaga.workers (worker_id, lease_until) VALUES "
        "('older', now() + interval '1 minute'), ('dead', now() - interval '1 minute')"
    )
    with pytest.raises(append_order.SwitchRefused, match=r"1 of 1 living workers.*older; update"):
        await append_order.switch(pool, parallel=True)
    await pool.execute("UPDATE evosaga.workers SET features = $1", [append_order.FEATURE])
    now = await append_order.switch(pool, parallel=True)
    assert (now.parallel, now.workers, now.older) == (True, 1, [])


async def test_appends_are_not_made_parallel_where_sessions_draw_positions_ahead(
    pool: Pool,
) -> None:
    await pool.execute("ALTER SEQUENCE evosaga.saga_events_position_seq CACHE 20")
    with pytest.raises(append_order.SwitchRefused, match=r"20 positions at once.*CACHE 1"):
        await append_order.switch(pool, parallel=True)
    assert not (await append_order.read(pool)).parallel


async def test_the_switch_waits_for_appends_under_way_and_gives_up_with_a_sentence(
    pool: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = await new_saga(pool)
    monkeypatch.setattr(append_order, "_PATIENCE", "300ms")
    for parallel in (True, False):
        async with appending(database_url, saga, 0 if parallel else 1) as connection:
            with pytest.raises(append_order.SwitchRefused, match="pg_prepared_xacts"):
                await append_order.switch(pool, parallel=parallel)
            assert (await append_order.read(pool)).parallel is not parallel
            await connection.execute("COMMIT")
        assert (await append_order.switch(pool, parallel=parallel)).parallel is parallel


async def test_an_append_that_the_switch_overtakes_is_tried_again(
    log: EventLog, pool: Pool, database_url: str
) -> None:
    """It has read the mode, and waits for the lock that the switch holds."""
    await append_order.switch(pool, parallel=True)
    saga = await new_saga(pool)
    connection = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", append_order.LOCK)
        waiting = asyncio.create_task(tell(log, saga, 0))
        await eventually(lambda: _waits(pool), message="the append to wait")
        await connection.execute("UPDATE evosaga.appends SET parallel = false")
    await asyncio.wait_for(waiting, 5)
    await connection.close()
    assert await committed(pool) == [f"{saga}:0"]


async def _waits(pool: Pool) -> bool:
    return bool(
        await pool.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' "
            "AND NOT granted AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database()))"
        )
    )
