"""Notices that the log went back: events were published that Postgres does not have (any more).

That is what a restore from a backup does, and the promotion of a standby that replicates
asynchronously. Two things prove it: the newest events on the stream are not in the log, or the
position that Redis notes as published is above every one that the log has given out (the newest
event may have been archived since). It is recorded beside the relay's position. From then on
nothing is published and nothing is removed until an operator has
decided (``evosaga recover``), who begins a new *epoch*: events of forgotten sequences are published
again under the same ids, and the epoch tells them apart.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog
from redis.asyncio import Redis

from evosaga.events import published, relay_position
from evosaga.events.database import Pool, Queryable
from evosaga.events.published import PublishedEvent
from evosaga.events.streams import EVENTS

_logger = structlog.get_logger("evosaga.relay")
_LOOK: Final = 100
"""So many of the newest entries are compared with the log; further back, where none is a saga's."""
LOG_WENT_BACK: Final = "log_went_back"
RECOVER: Final = "see what was lost: evosaga recover; then: evosaga recover --fix"


class LogWentBack(Exception):
    """The log lacks events that were published; an operator has to decide first."""


@dataclass(frozen=True, slots=True)
class LogLoss:
    """What proves it. ``event``: the newest published one that the log lacks, where one is known.

    ``told_up_to``: the position that was noted as published. ``newest``: the last that the log had
    given out at that moment.
    """

    told_up_to: int | None
    newest: int
    event: str | None
    noticed_at: datetime | None = None

    @classmethod
    def of(cls, told: str, noticed_at: datetime | None = None) -> "LogLoss":
        """As ``evosaga.relay`` keeps it."""
        found = json.loads(told)
        return cls(
            found.get("told_up_to"), found.get("newest") or 0, found.get("event"), noticed_at
        )

    def __str__(self) -> str:
        if self.event is not None:
            return f"the event {self.event} was published, and Postgres does not have it"
        published = f"events up to position {self.told_up_to} were published"
        return f"{published}, Postgres ends at {self.newest}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The log's ``epoch``, what it lacks, and the newest published event that it has."""

    epoch: int
    loss: LogLoss | None
    newest: PublishedEvent | None = None


class LogGuard:
    """Whether the log still has what was published last; of one leader of the relay.

    It is asked before anything is published. A new leader compares the stream with the log; after
    that the query for the cursor looks for the one event that was published last.
    """

    def __init__(self, pool: Pool, redis: Redis) -> None:
        self._pool = pool
        self._redis = redis
        self._last: PublishedEvent | None = None
        self._compared = False

    @property
    def last(self) -> tuple[UUID, int, datetime] | tuple[None, None, None]:
        """The event that was published last, as far as this leader knows."""
        if (one := self._last) is None:
            return None, None, None
        return one.saga_id, one.sequence, one.recorded_at

    def published(self, newest: tuple[UUID, int, datetime], epoch: int) -> None:
        """This leader has published up to that event."""
        saga_id, sequence, recorded_at = newest
        self._last = PublishedEvent(saga_id, sequence, "", recorded_at, epoch, {})

    def forget(self) -> None:
        """Somebody else may have published since."""
        self._last, self._compared = None, False

    async def went_back(self, lead: asyncpg.Record, told_up_to: int | None) -> bool:
        """Whether it lacks something. ``lead``: the relay's row, as ``given`` the last position
        that the log gave out, and as ``has_last`` whether it has ``last``.
        """
        if lead["went_back_at"] is not None:
            self.forget()
            return True
        within = (told_up_to or 0) <= lead["given"]
        if lead["has_last"] if self._last else self._compared and within:
            return False
        found = await notice(self._pool, self._redis, self._last)
        self._last, self._compared = found.newest, True
        return found.loss is not None


async def recorded(pool: Queryable) -> LogLoss | None:
    """The loss that was noticed and not decided about; raises what Postgres raises."""
    row = await pool.fetchrow(_STATE, EVENTS)
    if row is None or row["went_back_at"] is None:
        return None
    return LogLoss.of(row["went_back"] or "{}", row["went_back_at"])


async def require_sound(pool: Queryable) -> None:
    """Raise ``LogWentBack`` while a loss waits for a decision."""
    if (loss := await recorded(pool)) is not None:
        raise LogWentBack(f"the log went back ({loss}), so this waits for a decision: {RECOVER}")


async def epoch(pool: Queryable) -> int:
    """The epoch in which events are published now."""
    return int(await pool.fetchval(_EPOCH, EVENTS) or 0)


async def notice(pool: Pool, redis: Redis, last: PublishedEvent | None = None) -> Comparison:
    """Compare the stream with the log, unless a loss is recorded already; record what is found."""
    if (known := await recorded(pool)) is not None:
        return Comparison(await epoch(pool), known)
    found = await compare(pool, redis, last)
    if found.loss is not None:
        told = {
            "told_up_to": found.loss.told_up_to,
            "newest": found.loss.newest,
            "event": found.loss.event,
        }
        if await pool.fetchval(_RECORD, EVENTS, found.epoch, json.dumps(told)):
            _logger.error("log went back", reason=str(found.loss), cure=RECOVER)
    return found


async def compare(pool: Pool, redis: Redis, last: PublishedEvent | None = None) -> Comparison:
    """Compare, and change nothing. Raises what the stores raise.

    ``last``: one that is known to have been published, wherever it is on the stream by now.
    The epoch is read first and the log last: whatever is published meanwhile is in the log by then.
    """
    now = await epoch(pool)
    told = (await relay_position.read(redis)).up_to
    on_stream = [one for one in await published.newest(redis, _LOOK) if one.epoch >= now]
    seen = [*on_stream, last] if last is not None and last.epoch >= now else on_stream
    lost = {one.id for one in await missing(pool, seen)}
    lost |= {one.id for one in seen if one.epoch > now}
    there = [seen[row["place"] - 1] for row in await pool.fetch(_THERE, *_columns(seen))]
    newest = int(await pool.fetchval(f"SELECT {GIVEN}"))  # a constant
    if lost:
        first = next(one.id for one in seen if one.id in lost)
        return Comparison(now, LogLoss(told, newest, first))
    if not on_stream and told is not None and told > newest:
        return Comparison(now, LogLoss(told, newest, None))
    return Comparison(now, None, there[0] if there else None)


async def missing(pool: Queryable, seen: Sequence[PublishedEvent]) -> list[PublishedEvent]:
    """Those of these events that the log does not have as they were published.

    Those of rejected sagas that were archived are no loss.
    """
    if not seen:
        return []
    return [seen[row["place"] - 1] for row in await pool.fetch(_MISSING, *_columns(seen))]


def _columns(seen: Sequence[PublishedEvent]) -> list[list[Any]]:
    return [
        [one.saga_id for one in seen],
        [one.sequence for one in seen],
        [one.recorded_at for one in seen],
    ]


async def begin_epoch(pool: Pool, redis: Redis) -> int:
    """Begin a new epoch, and lift what a loss has stopped; the epoch's number.

    It is above every number on the newest part of the stream, since the log may have forgotten an
    epoch, too. The relay goes on where the log says that it was; it waits for the row meanwhile.
    Where no loss is recorded (somebody else was faster) the epoch stays what it is.
    """
    known = max([0, *(one.epoch for one in await published.newest(redis, _LOOK))])
    async with pool.acquire() as connection, connection.transaction():
        row: Any = await connection.fetchrow(_STOPPED, EVENTS)
        if row is None:
            return await epoch(connection)
        await relay_position.go_back(redis, min(row["position"], row["newest"]))
        begun = int(await connection.fetchval(_BEGIN, EVENTS, known))
    _logger.warning("epoch begun", epoch=begun)
    return begun


# The number counts on when events are archived, and a restore takes it back, too. A role that got
# its rights from an older release may not read it.
GIVEN: Final = """
(SELECT greatest((SELECT coalesce(max(position), 0) FROM evosaga.saga_events),
    CASE WHEN has_sequence_privilege(numbers, 'USAGE, SELECT')
         THEN pg_sequence_last_value(numbers::regclass) END)
 FROM pg_get_serial_sequence('evosaga.saga_events', 'position') AS numbers)
"""
"""The highest position that the log has given out, as an expression of SQL."""
_EPOCH: Final = "SELECT epoch FROM evosaga.relay WHERE stream = $1"
# By name, so that it can be asked of a schema that is older than the columns.
_STATE: Final = """
SELECT (told ->> 'went_back_at')::timestamptz AS went_back_at, told ->> 'went_back' AS went_back
FROM (SELECT to_jsonb(relay) AS told FROM evosaga.relay WHERE stream = $1) AS found
"""
_STOPPED: Final = """
SELECT position, (SELECT coalesce(max(position), 0) FROM evosaga.saga_events) AS newest
FROM evosaga.relay WHERE stream = $1 AND went_back_at IS NOT NULL FOR UPDATE
"""
_TOLD: Final = """
SELECT place FROM unnest($1::uuid[], $2::int[], $3::timestamptz[]) WITH ORDINALITY
    AS told (saga_id, sequence, recorded_at, place)
"""
_KNOWN: Final = """
EXISTS (SELECT FROM evosaga.saga_events AS known
        WHERE known.saga_id = told.saga_id AND known.sequence = told.sequence
          AND known.recorded_at = told.recorded_at)
"""
_THERE: Final = f"{_TOLD} WHERE {_KNOWN} ORDER BY place LIMIT 1"
_MISSING: Final = f"""
{_TOLD} WHERE NOT {_KNOWN}
  AND NOT EXISTS (SELECT FROM evosaga.refused WHERE saga_id = told.saga_id)
ORDER BY place
"""  # constants only
_RECORD: Final = """
UPDATE evosaga.relay SET went_back_at = now(), went_back = $3::jsonb
WHERE stream = $1 AND epoch = $2 AND went_back_at IS NULL RETURNING true
"""
_BEGIN: Final = """
UPDATE evosaga.relay SET epoch = greatest(epoch, $2) + 1, went_back_at = NULL, went_back = NULL,
    position = least(position, (SELECT coalesce(max(position), 0) FROM evosaga.saga_events))
WHERE stream = $1 RETURNING epoch
"""
