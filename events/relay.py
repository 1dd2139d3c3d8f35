"""The outbox relay: committed events go to the stream ``evosaga:events``, in order.

The database serialises appends until their commit (a trigger of the first migration), so
positions are in commit order and "everything above my cursor" skips nothing. One relay leads
under a lease in Postgres. Should a stopped leader wake up late it can only repeat a stretch that
starts at or below the cursor, so every event is seen first in its order, and then perhaps again:
at least once, deduplicate by id.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import structlog
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from events import streams
from events.database import TRANSIENT, Pool
from events.log import recorded_from
from events.model import CompensationSucceeded, Recorded, SagaStarted, StepSucceeded, public_data

_BATCH: Final = 1000
_LEASE_SECONDS: Final = 5.0
_IDLE_POLL: Final = 0.25
_PLACE: Final = ("saga_id", "sequence", "recorded_at", "correlation_id", "causation_id")
_logger = structlog.get_logger("evosaga.relay")


class Relay:
    """One candidate for leadership; run one in every worker."""

    def __init__(self, pool: Pool, redis: Redis, me: str) -> None:
        self._pool = pool
        self._redis = redis
        self._me = me
        self._nudge = asyncio.Event()

    def nudge(self) -> None:
        """Something was committed here: don't wait for the next poll."""
        self._nudge.set()

    async def run(self) -> None:
        """Relay for ever; cancel it to stop. Outages of either server are waited out."""
        pause = _IDLE_POLL
        while True:
            try:
                while await self.pump():
                    pass
                pause = _IDLE_POLL
            except (RedisError, *TRANSIENT) as trouble:
                _logger.warning("relay waits", reason=type(trouble).__name__)
                pause = min(5.0, pause * 2)
                self._nudge.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), pause)
            self._nudge.clear()

    async def pump(self) -> bool:
        """Publish one batch if this relay leads; True when there may be more."""
        cursor = await self._pool.fetchval(_LEAD, streams.EVENTS, self._me, _LEASE_SECONDS)
        if cursor is None:
            return False
        rows = await self._pool.fetch(_READ, cursor, _BATCH)
        if not rows:
            return False
        recorded = [_recorded(row) for row in rows]
        await streams.publish_events(
            self._redis,
            [
                # While releases are mixed: what may leave the house of an unknown event is unknown.
                cloud_event(row, told) if told else _told(row, dict(row), row["type"], {})
                for row, told in zip(rows, recorded, strict=True)
            ],
            [command for told in recorded if told and (command := follow_up(told))],
        )
        await self._pool.execute(_MOVE, streams.EVENTS, self._me, rows[-1]["position"])
        return len(rows) == _BATCH

    async def resign(self) -> None:
        """Let another relay lead at once."""
        await self._pool.execute(_RESIGN, streams.EVENTS, self._me)


def follow_up(recorded: Recorded) -> bytes | None:
    """The command that an event brings with it. Its id is the event's, so it starts one saga."""
    event = recorded.event
    if not isinstance(event, SagaStarted | StepSucceeded | CompensationSucceeded):
        return None
    if event.follow_up is None:
        return None
    told = f"{recorded.saga_id}:{recorded.sequence}"
    command = {
        "id": told,
        "type": event.follow_up.type,
        "data": event.follow_up.data,
        "correlationid": recorded.correlation_id,
        "causationid": told,
    }
    return json.dumps(command, ensure_ascii=False).encode()


def cloud_event(row: asyncpg.Record, recorded: Recorded) -> bytes:
    """An event of the log as CloudEvents 1.0 JSON without its private fields."""
    place = {name: getattr(recorded, name) for name in _PLACE}
    return _told(row, place, recorded.event.type, public_data(recorded.event))


def _recorded(row: asyncpg.Record) -> Recorded | None:
    """The event; None when only a newer release than this one knows it."""
    try:
        return recorded_from(row)
    except ValidationError:
        _logger.error("unknown event", saga_id=str(row["saga_id"]), sequence=row["sequence"])
        return None


def _told(
    row: asyncpg.Record, place: Mapping[str, Any], type_: str, public: Mapping[str, Any]
) -> bytes:
    known = {
        "saga": row["saga"],
        "version": row["version"],
        "organization_id": str(row["organization_id"]) if row["organization_id"] else None,
    }
    body = {
        "specversion": "1.0",
        "id": f"{place['saga_id']}:{place['sequence']}",
        "source": "/evosaga",
        "type": type_,
        "subject": str(place["saga_id"]),
        "time": place["recorded_at"].isoformat(),
        "datacontenttype": "application/json",
        "correlationid": place["correlation_id"],
        "causationid": place["causation_id"],
        "data": {k: v for k, v in known.items() if v is not None} | dict(public),
    }
    if place["causation_id"] is None:
        del body["causationid"]
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


# The lease is renewed only when half of it is gone: a relay at rest should not write.
_LEAD: Final = """
WITH mine AS (
    SELECT position FROM evosaga.relay
    WHERE stream = $1 AND leader = $2 AND lease_until > now() + make_interval(secs => $3 / 2)
), taken AS (
    UPDATE evosaga.relay SET leader = $2, lease_until = now() + make_interval(secs => $3)
    WHERE stream = $1 AND (leader = $2 OR leader IS NULL OR lease_until < now())
      AND NOT EXISTS (SELECT FROM mine)
    RETURNING position
)
SELECT position FROM mine UNION ALL SELECT position FROM taken
"""
_READ: Final = """
SELECT e.position, e.saga_id, e.sequence, e.recorded_at, e.correlation_id, e.causation_id,
       e.type, e.data, s.saga, s.version, s.organization_id
FROM evosaga.saga_events AS e JOIN evosaga.sagas AS s USING (saga_id)
WHERE e.position > $1 ORDER BY e.position LIMIT $2
"""
_MOVE: Final = """
UPDATE evosaga.relay SET position = greatest(position, $3) WHERE stream = $1 AND leader = $2
"""
_RESIGN: Final = """
UPDATE evosaga.relay SET leader = NULL, lease_until = NULL WHERE stream = $1 AND leader = $2
"""
