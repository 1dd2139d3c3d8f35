"""The append-only event log, with group commit.

An append names the sequence it expects to be next. The first to commit wins, all others get
``VersionConflict`` and must read again: the sequence is the fencing token against zombies. All
appends that arrive during a commit share the next one, so the price of durability is paid once for
many sagas; a conflict fails its own saga alone.

An effect in our own Postgres may *join* the append (``TransactionalEffect``): it runs inside the
transaction, and its outcome decides which events follow, so row and event are committed together.

When the connection breaks during a commit it is unknown whether it happened. The log finds out by
reading again, so ``append`` returns only when the events are known to be committed, or known to
have lost.
"""

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import asyncpg
import structlog
from pydantic import ValidationError

from evosaga.events import turns
from evosaga.events.append import PARKED, Append, Appended, StateT, write
from evosaga.events.database import TRANSIENT, Connection, Pool
from evosaga.events.model import Recorded, data_json, event_from
from evosaga.events.statuses import ACTIVE_STATUSES

_Waiting: TypeAlias = "tuple[Append[Any], asyncio.Future[Appended[Any]]]"

_logger = structlog.get_logger("evosaga.log")
_BATCH: Final = 256
_LONGEST_PAUSE: Final = 2.0
_STEP_ASIDE: Final = 1.0


class VersionConflict(Exception):
    """Another append to this saga was first: read again and decide anew."""


@dataclass(frozen=True, slots=True)
class Hold:
    """An attempt that was held like the one before it, under the claim at sequence ``claim``.

    ``sequence``: where the next event would go. Times are in seconds, as in ``Row``.
    """

    saga_id: UUID
    sequence: int
    owner: str
    claim: int
    holds: int
    code: str
    message: str
    due_in: float
    due_by: float | None = None
    in_doubt: bool = False


class EventLog:
    """The log behind one pool. ``run`` must be running for ``append`` to make progress."""

    def __init__(self, pool: Pool, on_commit: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._on_commit = on_commit
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()

    async def append(self, append: Append[StateT]) -> Appended[StateT]:
        """Commit events at the expected sequence.

        Waits while Postgres is away. Raises ``VersionConflict`` when another append was first,
        and the database's own error when it refuses the content of this very append.
        Cancelling the caller doesn't take back what is being written.
        """
        future: asyncio.Future[Appended[StateT]] = asyncio.get_running_loop().create_future()
        self._enqueue((append, future))
        return await future

    def _enqueue(self, item: _Waiting) -> None:
        self._waiting.append(item)
        self._wake.set()

    async def read(self, saga_id: UUID) -> list[Recorded]:
        """The saga's history in order; empty when there is no such saga.

        Raises pydantic's ``ValidationError`` for an event that this release does not know.
        """
        return [recorded_from(row) for row in await self._pool.fetch(_READ, [saga_id])]

    async def set_aside(
        self, saga_id: UUID, sequence: int, owner: str, seconds: float, code: str, message: str
    ) -> None:
        """Release a saga under way, due again after so many ``seconds``. Writes no event.

        Nothing happens when it has moved on from ``sequence`` or is another worker's by now.
        """
        await self._pool.execute(_SET_ASIDE, saga_id, sequence, owner, seconds, code, message)

    async def hold(self, hold: Hold) -> Literal["held", "moved", "lost"]:
        """Release a saga until it is due, since its attempt was held again. Writes no event.

        ``moved``: there is a newer append; ``lost``: it is another worker's by now, or was let
        go by an earlier try whose answer did not come. Raises what the database raises.
        """
        if await self._pool.fetchval(
            _HOLD,
            hold.saga_id,
            hold.sequence,
            hold.owner,
            hold.claim,
            hold.holds,
            hold.code,
            hold.message,
            hold.due_in,
            hold.due_by,
            hold.in_doubt,
        ):
            return "held"
        owner = await self._pool.fetchval(_OWNER, hold.saga_id)
        return "moved" if owner == hold.owner else "lost"

    async def take_turn(self, saga_id: UUID, owner: str) -> turns.Turn:
        """Take its key for a saga that waits behind another, if its turn has come."""
        return await turns.take(self._pool, saga_id, owner)

    async def wait_for_turn(
        self, saga_id: UUID, owner: str, message: str, due_by: float | None
    ) -> None:
        """Release a saga whose turn has not come. Writes no event."""
        await turns.give_back(self._pool, saga_id, owner, message, due_by)

    async def now(self) -> datetime:
        """Postgres's time, the only one that ages of events are counted from."""
        at: datetime = await self._pool.fetchval("SELECT now()")
        return at

    async def read_many(self, saga_ids: Sequence[UUID]) -> dict[UUID, list[Recorded]]:
        """Several histories in one query; those that this release can't read are left out."""
        rows = await self._pool.fetch(_READ, list(saga_ids))
        histories: dict[UUID, list[Recorded]] = {}
        for saga_id, events in itertools.groupby(rows, lambda row: row["saga_id"]):
            try:
                histories[saga_id] = [recorded_from(row) for row in events]
            except ValidationError as error:
                reason = error.errors(include_input=False, include_url=False)[0]["msg"]
                _logger.error("saga set aside", saga_id=str(saga_id), reason=reason)
        return histories

    async def run(self) -> None:
        """Write what is waiting, for ever. Cancel it to stop; what waits then is not written."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._next_batch():
                await self._write_until_settled(batch)
                self._on_commit()

    def _next_batch(self) -> list[_Waiting]:
        """The oldest appends, one a saga: two of one saga can't both expect the same sequence."""
        batch: list[_Waiting] = []
        later: deque[_Waiting] = deque()
        seen: set[UUID] = set()
        while self._waiting and len(batch) < _BATCH:
            item = self._waiting.popleft()
            if item[0].saga_id in seen:
                later.append(item)
            else:
                seen.add(item[0].saga_id)
                batch.append(item)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _write_until_settled(self, batch: list[_Waiting], doubtful: bool = False) -> None:
        pause = 0.02
        while batch:
            try:
                async with self._pool.acquire() as connection:
                    results = await _write(connection, [a for a, _ in batch], doubtful)
            except asyncpg.LockNotAvailableError:
                # A row that one of these wants is locked: it steps aside, the others go on.
                if len(batch) > 1:
                    for item in batch:
                        await self._write_until_settled([item], doubtful)
                else:
                    asyncio.get_running_loop().call_later(_STEP_ASIDE, self._enqueue, batch[0])
                return
            except TRANSIENT:
                doubtful = True
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            except Exception as refused:
                if len(batch) > 1:  # one bad row: find it, and let its neighbours through
                    for item in batch:
                        await self._write_until_settled([item], doubtful)
                else:
                    _settle(batch[0][1], refused)
                return
            for append, future in batch:
                _settle(future, results[append.saga_id])
            return


def _settle(future: "asyncio.Future[Appended[Any]]", result: Appended[Any] | Exception) -> None:
    if future.done():  # the caller was cancelled meanwhile
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


async def _write(
    connection: Connection, batch: Sequence[Append[Any]], doubtful: bool
) -> dict[UUID, Appended[Any] | Exception]:
    """One transaction for all of ``batch``; the result of each."""
    if any(append.join or append.row.status == PARKED for append in batch):
        async with connection.transaction():
            written = await write(connection, batch)
    else:
        written = await write(connection, batch)  # one statement, a transaction by itself
    results: dict[UUID, Appended[Any] | Exception] = {**written}
    for append in batch:
        if append.saga_id not in written:
            earlier = await _already_committed(connection, append) if doubtful else None
            results[append.saga_id] = earlier or VersionConflict(
                f"saga {append.saga_id} is past sequence {append.expected}"
            )
    return results


async def _already_committed(connection: Connection, append: Append[Any]) -> Appended[Any] | None:
    """What an earlier try of this append committed before its connection broke, if it did."""
    rows = await connection.fetch(_READ_FROM, append.saga_id, append.expected)
    together = [r for r in rows if r["recorded_at"] == rows[0]["recorded_at"]]
    stored = [(r["type"], json.loads(r["data"])) for r in together]
    # As they are stored: reading them may put them into newer words.
    mine = [(event.type, json.loads(data_json(event))) for event in append.events]
    if stored and stored[: len(mine)] == mine:
        return Appended([event_from(*event) for event in stored], rows[0]["recorded_at"])
    return None


def recorded_from(row: asyncpg.Record) -> Recorded:
    """A row of ``evosaga.saga_events`` as an event with its place in the log."""
    return Recorded(
        saga_id=row["saga_id"],
        sequence=row["sequence"],
        recorded_at=row["recorded_at"],
        correlation_id=row["correlation_id"],
        causation_id=row["causation_id"],
        event=event_from(row["type"], json.loads(row["data"])),
    )


_COLUMNS: Final = "saga_id, sequence, recorded_at, correlation_id, causation_id, type, data"
_READ: Final = f"""
SELECT {_COLUMNS} FROM evosaga.saga_events WHERE saga_id = ANY($1) ORDER BY saga_id, sequence
"""  # noqa: S608  # constants only
_SET_ASIDE: Final = f"""
UPDATE evosaga.sagas SET owner = NULL, next_at = now() + make_interval(secs => $4), code = $5,
    message = $6, scheduled_at = now(), held_claim = NULL, holds = NULL, doubted_at = NULL
WHERE saga_id = $1 AND next_sequence = $2 AND coalesce(owner, $3) = $3
  AND {ACTIVE_STATUSES}
"""  # noqa: S608  # constants only
_HOLD: Final = f"""
UPDATE evosaga.sagas SET owner = NULL, held_claim = $4, holds = $5, code = $6, message = $7,
    next_at = least(now() + make_interval(secs => $8), created_at + make_interval(secs => $9)),
    scheduled_at = now(), doubted_at = CASE WHEN $10 THEN now() ELSE doubted_at END
WHERE saga_id = $1 AND next_sequence = $2 AND owner = $3 AND {ACTIVE_STATUSES}
RETURNING true
"""  # noqa: S608
_OWNER: Final = "SELECT owner FROM evosaga.sagas WHERE saga_id = $1"
_READ_FROM: Final = f"""
SELECT {_COLUMNS} FROM evosaga.saga_events WHERE saga_id = $1 AND sequence >= $2 ORDER BY sequence
"""  # noqa: S608
