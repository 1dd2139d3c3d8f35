"""The recovery sweep: takes over sagas that are due and not driven, after a crash or a wait.

A saga is due when its owner's lease is over, or when its time has come and no worker drives it.
Each of these is found by an index, so a sweep costs nothing for what waits, whatever its number. Of
the sagas that living workers drive each sweep looks at those of one worker, in turn.
Taking one sets the row's owner and moves its time; the claim that counts is the append that
follows.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from redis.asyncio import Redis

from evosaga.events import background, log_loss, streams, turns
from evosaga.events.clock import LEEWAY, LIVING, PUT_BACK
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool, Queryable
from evosaga.events.event_log import EventLog
from evosaga.events.relay import KEEP_SECONDS
from evosaga.events.retention import Retention, trim
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.repeated_holds import ClaimedRow

_logger = structlog.get_logger("evosaga.recovery")
_EVERY: Final = 0.5
_GRACE: Final = 5.0
"""Seconds a living owner may be late before another worker takes its saga."""
_MOST: Final = 500
_UNREADABLE: Final = "its history has an event that this release can't read"
_KEEP_COMMANDS: Final = Retention(3600.0)
_KEEP_EVENTS: Final = Retention(KEEP_SECONDS)


class Recovery:
    """Looks for due sagas twice a second and hands them to the engine."""

    def __init__(self, pool: Pool, log: EventLog, engine: Engine, lease: Lease) -> None:
        self._pool = pool
        self._log = log
        self._engine = engine
        self._lease = lease
        self._watched: str | None = None
        """The worker whose sagas the last sweep looked at."""
        self._rotation = turns.Rotation()

    async def run(self) -> None:
        """Sweep for ever; cancel it to stop."""
        await background.repeat(self._turn, jitter=0.2)

    async def _turn(self) -> float:
        try:
            while await self.sweep() == _MOST:
                pass
        except TRANSIENT as trouble:
            _logger.warning("recovery_retrying", reason=reason(trouble))
        return _EVERY * self._lease.pace.slower

    async def sweep(self) -> int:
        """One look; how many sagas were taken."""
        room = min(_MOST, self._engine.free)
        if room == 0:
            return 0
        known = self._engine.registry.versions
        self._engine.bind_lease()  # what is taken over rests on the lease as it is before
        rows = await self._take(room, known)
        if len(rows) < room:
            rows += await self._come(room - len(rows), known)
        if rows:
            histories = await self._log.read_many([row["saga_id"] for row in rows])
            # A paused owner may have woken up and gone on in between: then it is not lost.
            at = {row["saga_id"]: row["next_sequence"] for row in rows}
            still = {id_: events for id_, events in histories.items() if len(events) == at[id_]}
            taken = {row["saga_id"]: _taken(row) for row in rows}
            wrong = self._engine.take_over(still, rows[0]["now"], taken)
            wrong |= dict.fromkeys(at.keys() - histories.keys(), _UNREADABLE)
            for saga_id, why in wrong.items():
                await self._engine.set_aside(saga_id, at[saga_id], why)
            mine = (None, self._lease.worker)
            lost = sum(row["was"] not in mine for row in rows if row["saga_id"] in still)
            # What was merely due, a retry say, is no sign that a worker died.
            for event, sagas in (("taken_over", lost), ("resumed", len(still) - lost)):
                if sagas:
                    _logger.info(event, sagas=sagas)
        return len(rows)

    async def _come(self, room: int, known: Collection[tuple[str, int]]) -> list[asyncpg.Record]:
        self._rotation.ended |= self._engine.take_ended()
        return await turns.come(self._pool, self._lease.worker, room, [*known], self._rotation)

    async def _take(self, room: int, known: Collection[tuple[str, int]]) -> list[asyncpg.Record]:
        self._watched = await self._pool.fetchval(_NEXT_OWNER, self._watched)
        return await look(
            self._pool,
            self._lease.worker,
            room,
            known,
            watched=self._watched,
            left_alone=self._engine.left_alone,
            steady=self._lease.steady,
            largest=self._engine.largest,
            share=self._engine.share,
        )


async def look(
    pool: Queryable,
    worker: str,
    room: int,
    known: Collection[tuple[str, int]],
    *,
    watched: str | None = None,
    left_alone: Collection[UUID] = (),
    steady: bool = True,
    largest: Mapping[UUID, int] = MappingProxyType({}),
    share: int = 1_000_000,
) -> list[asyncpg.Record]:
    """Make what is due this worker's, ``room`` sagas at the most, of the definitions it knows.

    ``watched``: the worker whose sagas are looked at though it lives. Of what is due one saga of
    each organization after another, and no more than its ``share``; ``largest``: how many sagas
    this worker drives of those that use much of it.
    """
    return await pool.fetch(
        _TAKE,
        worker,
        room,
        _GRACE,
        list(left_alone),
        [name for name, _ in known],
        [version for _, version in known],
        steady,
        watched,
        list(largest),
        list(largest.values()),
        share,
    )


def _taken(row: asyncpg.Record) -> ClaimedRow:
    return ClaimedRow(
        row["was"],
        row["put_back"],
        row["held_claim"],
        row["holds"],
        row["doubted_at"],
        row["code"],
        row["message"],
    )


async def tidy(
    pool: Pool,
    redis: Redis,
    others: Sequence[str] = (),
    every: float = 60.0,
    keep: Retention = _KEEP_EVENTS,
) -> None:
    """Now and then trim the streams and forget silent consumers; cancel it to stop.

    ``others``: the domain's streams, of which each is kept as much as of the events. Nothing is
    trimmed while the log is known to have gone back: the streams have what it forgot.
    """

    async def turn() -> float:
        try:
            if (await log_loss.notice(pool, redis)).loss is None:
                await trim(redis, streams.COMMANDS, _KEEP_COMMANDS)
                for stream in (streams.EVENTS, *others):
                    await trim(redis, stream, keep)
            await streams.drop_idle_consumers(redis, idle_seconds=600.0)
        except Exception as trouble:  # housekeeping is never a reason to stop a worker
            _logger.warning("retention_retrying", reason=reason(trouble))
        return every

    await background.repeat(turn, first=every)


# Subqueries, not a join: when another worker took the row while we waited for its lock, Postgres
# asks again with the new row, and only a subquery is then looked up anew.
# An owner without a row has left and is not waited for. One that is merely silent is believed
# to be dead only by a worker that has itself been seen without a break. What has a time that lies
# ahead of a clock that was put back is looked at; what a living worker drives, by that one alone.
_WINDOW: Final = 2000
"""Due sagas, those due longest, among which organizations take turns."""
_KNOWN: Final = """saga_id <> ALL($4) AND (saga, version) IN (
        SELECT * FROM unnest($5::text[], $6::int[]))"""
_TAKE: Final = f"""
WITH RECURSIVE owners AS (
    (SELECT owner FROM evosaga.sagas WHERE {ACTIVE_STATUSES} ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT owner FROM evosaga.sagas WHERE {ACTIVE_STATUSES} AND owner > owners.owner
            ORDER BY owner LIMIT 1)
    FROM owners WHERE owners.owner IS NOT NULL
), dead AS (
    SELECT owner FROM owners WHERE owner IS NOT NULL AND CASE
        WHEN NOT EXISTS (SELECT FROM evosaga.workers WHERE worker_id = owners.owner) THEN true
        ELSE $7::boolean AND NOT EXISTS (SELECT FROM evosaga.workers
                                         WHERE worker_id = owners.owner AND {LIVING})
    END
), busy AS (
    SELECT organization_id, driven FROM unnest($9::uuid[], $10::int[])
        AS busy (organization_id, driven)
), found AS (
    (SELECT saga_id FROM (
        SELECT saga_id, organization_id, due_at, row_number() OVER (
            PARTITION BY coalesce(organization_id, saga_id) ORDER BY due_at) AS turn
        FROM (SELECT saga_id, organization_id, due_at FROM evosaga.sagas
              WHERE due_at <= now() AND {_KNOWN} AND (organization_id IS NULL
                  OR organization_id <> ALL(ARRAY(SELECT organization_id FROM busy
                                                  WHERE driven >= $11)))
              ORDER BY due_at LIMIT {_WINDOW}) AS next_ones) AS turns
        LEFT JOIN busy USING (organization_id)
     WHERE organization_id IS NULL OR turn <= $11 - coalesce(driven, 0)
     ORDER BY turn, due_at LIMIT $2)
    UNION ALL
    (SELECT saga_id FROM evosaga.sagas WHERE waits_since > now() + {LEEWAY} AND {_KNOWN} LIMIT $2)
    UNION ALL
    (SELECT saga_id FROM evosaga.sagas
     WHERE owner = ANY(ARRAY(SELECT owner FROM dead)) AND {ACTIVE_STATUSES} AND {_KNOWN} LIMIT $2)
    UNION ALL
    (SELECT saga_id FROM evosaga.sagas
     WHERE owner = $8 AND {ACTIVE_STATUSES} AND {_KNOWN}
       AND (next_at <= now() - make_interval(secs => $3) OR (owner = $1 AND {PUT_BACK})) LIMIT $2)
), due AS (
    SELECT saga_id, owner, {PUT_BACK} AND next_at > now() AS put_back FROM evosaga.sagas AS saga
    WHERE saga_id = ANY(ARRAY(SELECT saga_id FROM found)) AND {ACTIVE_STATUSES} AND CASE
          WHEN owner IS NULL THEN next_at <= now() OR {PUT_BACK}
          WHEN NOT EXISTS (SELECT FROM evosaga.workers WHERE worker_id = saga.owner) THEN true
          WHEN NOT EXISTS (SELECT FROM evosaga.workers
                           WHERE worker_id = saga.owner AND {LIVING}) THEN $7::boolean
          WHEN owner = $1 AND {PUT_BACK} THEN true
          ELSE next_at <= now() - make_interval(secs => $3)
      END
    ORDER BY next_at LIMIT $2
    FOR UPDATE OF saga SKIP LOCKED
)
UPDATE evosaga.sagas AS saga
SET owner = $1, next_at = now() + interval '60 seconds', scheduled_at = now()
FROM due WHERE saga.saga_id = due.saga_id
RETURNING saga.saga_id, saga.next_sequence, due.owner AS was, now() AS now, due.put_back,
    saga.held_claim, saga.holds, saga.doubted_at, saga.code, saga.message
"""  # noqa: S608  # constants only
# From one owner to the next, and after the last one to the first.
_NEXT_OWNER: Final = f"""
SELECT coalesce(
    (SELECT owner FROM evosaga.sagas WHERE {ACTIVE_STATUSES} AND owner > $1::text
     ORDER BY owner LIMIT 1),
    (SELECT owner FROM evosaga.sagas WHERE {ACTIVE_STATUSES} AND owner IS NOT NULL
     ORDER BY owner LIMIT 1))
"""  # noqa: S608  # constants only
