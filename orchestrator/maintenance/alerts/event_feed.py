"""Events for receivers: what ``evosaga:events`` has above the entry that each was given last.

The stream has the events of sagas and those of the domain. What Redis loses is published once
more, with newer entries, so it is sent once more unless its first delivery is still known.
"""

import json
from typing import Any, Final

from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.streams import FIELD, as_text
from evosaga.orchestrator.config.receivers import Receiver
from evosaga.orchestrator.maintenance.alerts import outbox

_BATCH: Final = 500
_MOST_WAITING: Final = 1000
"""Messages that wait for one receiver; the rest waits on the stream, which is kept for a week."""

_LONGEST: Final = 400


async def take(pool: Pool, redis: Redis, name: str, receiver: Receiver) -> int:
    """Write the next messages for this receiver; how many entries were looked at.

    A receiver that is new begins with what comes from now on. Raises what the stores raise.
    """
    known = await pool.fetchrow(_KNOWN, name)
    if known is None or not known["last_event"]:
        newest: Any = await redis.xrevrange(streams.EVENTS, count=1)
        last = as_text(newest[0][0]) if newest else "0-0"
        await pool.execute(_BEGIN, name, last)
        return 0
    if known["waiting"] >= _MOST_WAITING:
        return 0
    last = known["last_event"]
    entries: Any = await redis.xrange(streams.EVENTS, min=f"({last}", count=_BATCH)
    if not entries:
        return 0
    async with pool.acquire() as connection, connection.transaction():
        moved = await connection.fetchval(_MOVE, name, last, as_text(entries[-1][0]))
        if not moved:  # another took them: this one does not lead any more
            return 0
        for _, fields in entries:
            event = _event(fields)
            if event is not None and receiver.wants(event["type"]):
                await outbox.queue(connection, name, event["id"], event["type"], event)
    return len(entries)


def _event(fields: Any) -> dict[str, Any] | None:
    """The CloudEvent of an entry; None for one that somebody else put there."""
    try:
        event = json.loads(fields[FIELD])
    except (KeyError, ValueError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    return event if all(_storable(event.get(name)) for name in ("id", "type")) else None


def _storable(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()


_KNOWN: Final = """
SELECT last_event, (SELECT count(*) FROM evosaga.deliveries
    WHERE receiver = $1 AND delivered_at IS NULL AND gave_up_at IS NULL) AS waiting
FROM evosaga.receivers WHERE name = $1
"""
_BEGIN: Final = """
INSERT INTO evosaga.receivers AS known (name, last_event) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET last_event = excluded.last_event WHERE known.last_event = ''
"""
_MOVE: Final = """
UPDATE evosaga.receivers SET last_event = $3, updated_at = now()
WHERE name = $1 AND last_event = $2 RETURNING true
"""
