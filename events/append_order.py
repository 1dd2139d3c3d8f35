"""How appends to the log are ordered: one after another, or in parallel. The switch is in Postgres.

*In order* (the default): the trigger ``evosaga.append_in_commit_order`` takes one exclusive
advisory lock until the commit. Positions are in commit order, and each commit waits for the one
before it.

*In parallel*: the trigger takes that lock shared, and beside it, before the first position is
drawn, a shared advisory lock whose key holds the last position that was drawn by then: the *floor*.
What the append draws is above its floor. A transaction gives up its locks after its commit is
visible, so once the floors are read from ``pg_locks``, every position up to the lowest of them (and
up to the newest that was visible before) belongs to a transaction that is over: a later snapshot
has the event, or there never will be one. The relay publishes up to there (``SETTLED``). Nothing is
remembered between two looks, so it is the same for an heir, after a crash, and after a promotion,
where a sequence may leave gaps; a prepared transaction holds its floor until it is decided about.

Positions of one saga are in order in both modes, since its row is locked when they are drawn; and
an append that begins after another's commit has higher positions. Only appends that overlap may
commit in another order than their positions.

Relays of this release use ``SETTLED`` in both modes. Those of older releases read everything above
their cursor, so a trigger gives them no lease while appends are parallel. Both modes exclude each
other by the lock: an exclusive append begins when every shared one is over, and the switch itself
holds it exclusively.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import asyncpg

from evosaga.events.clock import LIVING
from evosaga.events.database import Pool, Queryable
from evosaga.events.streams import EVENTS

FEATURE: Final = "parallel-appends"
"""In ``evosaga.workers.features``: the worker's relay knows of floors."""
_LOG: Final = "evosaga.saga_events"
LOCK: Final = 0x65766F5341474100
_PATIENCE: Final = "10s"
"""So long the switch waits for appends that are under way, and lets new ones wait."""


class SwitchRefused(Exception):
    """Nothing was changed; the sentence says why, and what to do."""


@dataclass(frozen=True, slots=True)
class AppendOrder:
    """What is so now.

    ``workers``: how many are alive; ``older``: those of them whose release has no relay that may
    lead while appends are parallel. ``drawn_ahead``: positions that a session draws at once, which
    must be 1. ``longest``: of the appends that are under way, how long the oldest has been.
    """

    parallel: bool
    workers: int
    older: Sequence[str]
    drawn_ahead: int
    longest: timedelta


async def read(pool: Queryable) -> AppendOrder:
    """How appends are ordered. Raises what Postgres raises."""
    row = await pool.fetchrow(_READ, _LOG, FEATURE)
    assert row is not None
    return AppendOrder(
        bool(row["parallel"]), row["workers"], row["older"], row["drawn_ahead"], row["longest"]
    )


async def is_parallel(pool: Queryable) -> bool:
    """Whether appends commit in parallel; also of a schema that knows no such thing yet."""
    if await pool.fetchval("SELECT to_regclass('evosaga.appends')") is None:
        return False
    return bool(await pool.fetchval(_PARALLEL, _LOG))


async def switch(pool: Pool, *, parallel: bool) -> AppendOrder:
    """Order appends so from now on; how they are ordered then. Safe to repeat.

    Raises ``SwitchRefused``, and what Postgres raises.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
        try:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        except asyncpg.LockNotAvailableError:
            raise SwitchRefused(
                f"an append has been under way for more than {_PATIENCE}: look at pg_stat_activity "
                "and pg_prepared_xacts for what holds it up, then try again"
            ) from None
        if parallel and (why := _unfit(await read(connection))) is not None:
            raise SwitchRefused(why)
        # A relay of an older release that leads loses its lease.
        await connection.execute(_SWITCH, _LOG, parallel, EVENTS)
        return await read(connection)


def _unfit(now: AppendOrder) -> str | None:
    """Why appends can't be parallel; None when they can."""
    if now.older:
        return (
            f"{len(now.older)} of {now.workers} living workers are of an older release and could "
            f"not publish events then: {', '.join(now.older[:5])}; update them, then try again"
        )
    if now.drawn_ahead != 1:
        return (
            f"each session draws {now.drawn_ahead} positions at once, so they say nothing of an "
            f"order: ALTER SEQUENCE {_SEQUENCE} CACHE 1, then try again"
        )
    return None


_SEQUENCE: Final = "evosaga.saga_events_position_seq"
# Both 16 bits in front of the floor, and the floor itself, as in revision 0015.
_FLOORS: Final = """
FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 1
    AND classid::bigint >> 16 = 25958
    AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""
SETTLED: Final = f"""
least(newest, CASE WHEN newest > position THEN
    (SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) {_FLOORS}) END)
"""
"""The position up to which nothing can be added any more, as an expression of SQL.

``newest`` is the highest position that the statement's snapshot has, ``position`` the cursor. What
is read up to it has to be read by a later statement.
"""
_PARALLEL: Final = "SELECT parallel FROM evosaga.appends WHERE log = $1"
_READ: Final = f"""
WITH alive AS (
    SELECT worker_id, $2 = ANY(features) AS fit FROM evosaga.workers WHERE {LIVING}
)
SELECT ({_PARALLEL}) AS parallel,
    (SELECT count(*) FROM alive) AS workers,
    ARRAY(SELECT worker_id FROM alive WHERE NOT fit ORDER BY worker_id) AS older,
    (SELECT seqcache FROM pg_catalog.pg_sequence
     WHERE seqrelid = '{_SEQUENCE}'::regclass) AS drawn_ahead,
    greatest(interval '0', now() - (
        SELECT min(coalesce(
            (SELECT xact_start FROM pg_catalog.pg_stat_activity AS one WHERE one.pid = held.pid),
            (SELECT min(prepared) FROM pg_catalog.pg_prepared_xacts))) FROM (SELECT pid {_FLOORS})
        AS held)) AS longest
"""  # noqa: S608
_SWITCH: Final = """
WITH switched AS (
    UPDATE evosaga.appends SET parallel = $2 WHERE log = $1 AND parallel <> $2 RETURNING parallel
)
UPDATE evosaga.relay SET leader = NULL, lease_until = NULL
FROM switched WHERE stream = $3 AND switched.parallel
"""
