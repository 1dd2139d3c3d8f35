"""The recovery sweep: takes over sagas that are due and not driven, after a crash or a wait.

A saga is due when its owner's lease is over, or when its time has come and no worker drives it.
Taking one sets the row's owner and moves its time; the claim that counts is the append that
follows.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog
from redis.asyncio import Redis

from evosaga.events import background, streams, turns
from evosaga.events.clock import LIVING, PUT_BACK
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.event_log import EventLog
from evosaga.events.relay import KEEP_SECONDS
from evosaga.events.retention import trim
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
_KEEP_COMMANDS: Final = 3600.0
_KEEP_EVENTS: Final = KEEP_SECONDS


class Recovery:
    """Looks for due sagas twice a second and hands them to the engine."""

    def __init__(self, pool: Pool, log: EventLog, engine: Engine, lease: Lease) -> None:
        self._pool = pool
        self._log = log
        self._engine = engine
        self._lease = lease

    async def run(self) -> None:
        """Sweep for ever; cancel it to stop."""
        await background.repeat(self._turn, jitter=0.2)

    async def _turn(self) -> float:
        try:
            while await self.sweep() == _MOST:
                pass
        except TRANSIENT as trouble:
            _logger.warning("recovery_retrying", reason=type(trouble).__name__)
        return _EVERY * self._lease.pace.slower

    async def sweep(self) -> int:
        """One look; how many sagas were taken."""
        room = min(_MOST, self._engine.free)
        if room == 0:
            return 0
        known = self._engine.registry.versions
        self._engine.bind_lease()  # what is taken over rests on the lease as it is before
        rows = await self._pool.fetch(
            _TAKE,
            self._lease.worker,
            room,
            _GRACE,
            list(self._engine.left_alone),
            [name for name, _ in known],
            [version for _, version in known],
            self._lease.steady,
        )
        if len(rows) < room:
            rows += await turns.come(self._pool, self._lease.worker, room - len(rows), [*known])
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


async def tidy(redis: Redis, others: Sequence[str] = (), every: float = 60.0) -> None:
    """Now and then trim the streams and forget silent consumers; cancel it to stop.

    ``others``: the domain's streams, which are kept as long as the events are.
    """

    async def turn() -> float:
        try:
            await trim(redis, streams.COMMANDS, _KEEP_COMMANDS)
            for stream in (streams.EVENTS, *others):
                await trim(redis, stream, _KEEP_EVENTS)
            await streams.drop_idle_consumers(redis, idle_seconds=600.0)
        except Exception as trouble:  # housekeeping is never a reason to stop a worker
            _logger.warning("retention_retrying", reason=type(trouble).__name__)
        return every

    await background.repeat(turn, first=every)


# Subqueries, not a join: when another worker took the row while we waited for its lock, Postgres
# asks again with the new row, and only a subquery is then looked up anew.
# An owner without a row has left and is not waited for. One that is merely silent is believed
# to be dead only by a worker that has itself been seen without a break. What has a time that lies
# ahead of a clock that was put back is looked at; what a living worker drives, by that one alone.
_TAKE: Final = f"""
WITH due AS (
    SELECT saga_id, owner, {PUT_BACK} AND next_at > now() AS put_back FROM evosaga.sagas AS saga
    JOIN unnest($5::text[], $6::int[]) AS known (saga, version) USING (saga, version)
    WHERE {ACTIVE_STATUSES} AND saga_id <> ALL($4)
      AND CASE
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
