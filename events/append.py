"""Appends to the event log: events and status rows of many sagas, written in one statement.

It runs inside the caller's transaction. An append names the sequence it expects; one whose row has
moved on is missing from the answer, and the others are not affected.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from evosaga.events import alerts
from evosaga.events.database import Connection
from evosaga.events.model import SagaEvent, data_json

PARKED: Final = "failed"
StateT = TypeVar("StateT")
"""What a history amounts to for the appender; it is handed back as it came, and never stored."""


@dataclass(frozen=True, slots=True)
class StatusRow:
    """What the status row shows after an append; the rest of it never changes."""

    status: str
    step: str | None = None
    direction: str | None = None
    attempt: int | None = None
    code: str | None = None
    message: str | None = None
    due_in: float | None = None
    """Seconds after the commit at which the saga is due again; None: it is at rest."""
    due_by: float | None = None
    """Seconds after the saga's start at which it is due at the latest."""
    owner: str | None = None
    existing_instance: str | None = None
    holds: int | None = None
    """How often in a row the step was held, when no event tells of the newest; None: one does."""
    kept: bool = False
    """Who drives it, when it is due and what it says stay as they are: the appender can't know."""


class Written(NamedTuple, Generic[StateT]):
    """What an append writes: events, the row after them, and the appender's state after them."""

    events: Sequence[SagaEvent]
    row: StatusRow
    state: StateT


@dataclass(frozen=True, slots=True)
class TransactionalEffect(Generic[StateT]):
    """An effect that is part of the commit.

    ``then`` is pure: it turns the effect's outcome into what follows the append's own events. With
    a row that has ``holds`` no event at all is written, not even the claim.
    """

    run: Callable[[Any, Sequence[Any]], Awaitable[Sequence[Any]]]
    context: Any
    then: Callable[[Any], Written[StateT]]


@dataclass(frozen=True, slots=True)
class Append(Generic[StateT]):
    """``row`` and ``state`` are those after ``events``; with a ``join``, its ``then`` says them."""

    saga_id: UUID
    expected: int
    events: Sequence[SagaEvent]
    row: StatusRow
    correlation_id: str
    causation_id: str | None
    state: StateT
    join: TransactionalEffect[StateT] | None = None


@dataclass(frozen=True, slots=True)
class Appended(Generic[StateT]):
    """Committed events, with the database's time of the commit's transaction.

    ``row`` and ``state`` are None when the commit was found by reading the log again.
    """

    events: Sequence[SagaEvent]
    recorded_at: datetime
    row: StatusRow | None = None
    state: StateT | None = None


async def write(
    connection: Connection, batch: Sequence[Append[StateT]]
) -> dict[UUID, Appended[StateT]]:
    """Append inside the caller's transaction; what is missing from the answer has lost."""
    joined = await _run_joins(connection, [a for a in batch if a.join is not None])
    plans = {
        a.saga_id: joined[a.saga_id] if a.join else Written(a.events, a.row, a.state)
        for a in batch
        if a.join is None or a.saga_id in joined
    }
    planned = [a for a in batch if a.saga_id in plans]
    if not planned:
        return {}
    # Rows by id, so that transactions wait for each other in one order only; events as they came.
    rows = _rows(sorted(planned, key=lambda a: a.saga_id), plans)
    moved = await connection.fetch(_APPEND, *rows, *_events(planned, plans))
    appended = {}
    for row in moved:
        w = plans[row["saga_id"]]
        appended[row["saga_id"]] = Appended(w.events, row["updated_at"], w.row, w.state)
    if failed := [id_ for id_ in appended if plans[id_].row.status == PARKED]:
        await alerts.parked(connection, failed)
    return appended


async def _run_joins(
    connection: Connection, appends: Sequence[Append[StateT]]
) -> dict[UUID, Written[StateT]]:
    """Run joined effects for the sagas that are still where their append expects them."""
    if not appends:
        return {}
    locked = await connection.fetch(_LOCK, [a.saga_id for a in appends])
    at = {row["saga_id"]: row["next_sequence"] for row in locked}
    groups: dict[Any, list[Append[StateT]]] = {}
    for append in appends:
        if append.join and at.get(append.saga_id) == append.expected:
            groups.setdefault(append.join.run, []).append(append)
    plans: dict[UUID, Written[StateT]] = {}
    for run, group in groups.items():
        said = await run(connection, [a.join.context for a in group if a.join])
        for append, outcome in zip(group, said, strict=True):
            assert append.join is not None
            after = append.join.then(outcome)
            events = [*append.events, *after.events] if after.row.holds is None else []
            plans[append.saga_id] = after._replace(events=events)
    return plans


def _rows(
    appends: Sequence[Append[StateT]], plans: Mapping[UUID, Written[StateT]]
) -> list[list[Any]]:
    """The status rows, column by column."""
    rows = [plans[a.saga_id].row for a in appends]
    return [
        [a.saga_id for a in appends],
        [a.expected for a in appends],
        [a.expected + len(plans[a.saga_id].events) for a in appends],
        [row.status for row in rows],
        [row.step for row in rows],
        [row.direction for row in rows],
        [row.attempt for row in rows],
        [row.code for row in rows],
        [row.message for row in rows],
        [row.due_in for row in rows],
        [row.owner for row in rows],
        [row.existing_instance for row in rows],
        [row.due_by for row in rows],
        [row.holds for row in rows],
        [row.kept for row in rows],
    ]


def _events(
    appends: Sequence[Append[StateT]], plans: Mapping[UUID, Written[StateT]]
) -> list[list[Any]]:
    """The events in order, column by column."""
    events = [
        (a, a.expected + i, event)
        for a in appends
        for i, event in enumerate(plans[a.saga_id].events)
    ]
    return [
        [a.saga_id for a, _, _ in events],
        [sequence for _, sequence, _ in events],
        [event.type for _, _, event in events],
        [data_json(event) for _, _, event in events],
        [a.correlation_id for a, _, _ in events],
        [a.causation_id for a, _, _ in events],
    ]


# Other clients may hold locks on tables that aren't ours alone, and the other commits of the batch
# can't wait for them: a lock timeout from here on, set without a round trip of its own.
_LOCK: Final = """
WITH impatient AS MATERIALIZED (SELECT set_config('lock_timeout', '500ms', true))
SELECT saga_id, next_sequence FROM impatient, evosaga.sagas
WHERE saga_id = ANY($1) ORDER BY saga_id FOR NO KEY UPDATE OF sagas
"""
# The rows first, and only for those that won the events: one round trip, one commit. So an event's
# position is drawn while its saga's row is locked, and positions of one saga are in order whatever
# the trigger does (``evosaga.events.append_order``). The insert comes last, so the locks that the
# trigger takes are held as shortly as can be.
_APPEND: Final = """
WITH moved AS (
UPDATE evosaga.sagas AS saga SET
    next_sequence = new.next_sequence, status = new.status, step = new.step,
    direction = new.direction, attempt = new.attempt,
    code = CASE WHEN new.kept THEN saga.code ELSE new.code END,
    message = CASE WHEN new.kept THEN saga.message ELSE new.message END,
    next_at = CASE WHEN new.kept THEN CASE WHEN saga.owner IS NULL THEN now() ELSE saga.next_at END
        WHEN new.due_in IS NOT NULL THEN
        least(now() + make_interval(secs => new.due_in),
              saga.created_at + make_interval(secs => new.due_by)) END,
    scheduled_at = CASE WHEN new.kept AND saga.owner IS NOT NULL THEN saga.scheduled_at
        ELSE now() END,
    owner = CASE WHEN new.kept THEN saga.owner ELSE new.owner END,
    held_claim = CASE WHEN new.kept THEN saga.held_claim
        WHEN new.holds IS NOT NULL THEN new.expected - 1 END,
    holds = CASE WHEN new.kept THEN saga.holds ELSE new.holds END,
    doubted_at = CASE WHEN new.kept THEN saga.doubted_at END,
    updated_at = CASE WHEN new.next_sequence > new.expected THEN now() ELSE saga.updated_at END,
    existing_instance = coalesce(new.existing_instance, saga.existing_instance)
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::text[], $6::text[], $7::int[],
            $8::text[], $9::text[], $10::float8[], $11::text[], $12::text[], $13::float8[],
            $14::int[], $15::bool[])
    AS new (saga_id, expected, next_sequence, status, step, direction, attempt, code, message,
            due_in, owner, existing_instance, due_by, holds, kept)
WHERE saga.saga_id = new.saga_id AND saga.next_sequence = new.expected
RETURNING saga.saga_id, now() AS updated_at
), told AS (
    INSERT INTO evosaga.saga_events
        (saga_id, sequence, type, data, correlation_id, causation_id)
    SELECT saga_id, sequence, type, data::jsonb, correlation_id, causation_id
    FROM unnest($16::uuid[], $17::int[], $18::text[], $19::text[], $20::text[], $21::text[])
        WITH ORDINALITY
        AS new (saga_id, sequence, type, data, correlation_id, causation_id, place)
    JOIN moved USING (saga_id)
    ORDER BY place
)
SELECT saga_id, updated_at FROM moved
"""
