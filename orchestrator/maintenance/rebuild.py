"""The status rows again from the log, which is the truth: the same rows, or what was wrong.

Rows are compared in snapshots that lock nothing. Only what differs is locked, read once more and
written, so workers may run meanwhile. Who happens to drive a saga (``owner``, and ``next_at`` while
it is under way) is no part of its history and is kept; a row that is missing is made due.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool
from evosaga.events.model import CompensationStarted, Recorded, StepStarted
from evosaga.events.turns import WAITING
from evosaga.orchestrator.engine.decider import decide
from evosaga.orchestrator.engine.limits import LIMITED
from evosaga.orchestrator.engine.projection import status_row
from evosaga.orchestrator.engine.quarantine import STUMBLED
from evosaga.orchestrator.engine.repeated_holds import claim_of
from evosaga.orchestrator.engine.state import IllegalTransition, replay
from evosaga.orchestrator.maintenance.history_scan import ScannedHistory, batches, read
from evosaga.sagas.conflicts import BEHIND
from evosaga.sagas.registry import SagaRegistry

OnProgress: TypeAlias = Callable[[int, int], None]
"""Told (sagas so far, events so far)."""

_COLUMNS: Final = {
    "saga_id": "uuid",
    "saga": "text",
    "version": "integer",
    "status": "text",
    "business_key": "text",
    "organization_id": "uuid",
    "instance_name": "text",
    "command_id": "text",
    "command_hash": "text",
    "step": "text",
    "direction": "text",
    "attempt": "integer",
    "code": "text",
    "message": "text",
    "existing_instance": "text",
    "correlation_id": "text",
    "causation_id": "text",
    "next_sequence": "integer",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "behind": "uuid",
    "next_at": "timestamptz",
    "owner": "text",
    "scheduled_at": "timestamptz",
}
_LIVING: Final = ("next_at", "owner", "scheduled_at")
EXAMPLES: Final = 100


@dataclass(slots=True)
class Report:
    """What was found, in numbers; of what was wrong some ``EXAMPLES`` by saga id.

    ``wrong`` names the columns that differ, ``*`` for a row that was missing. ``alone`` says why a
    row was left alone: this release can't read its history, or another row is in its way.
    ``without_history``: rows whose events were archived, or that never were ours.
    """

    sagas: int = 0
    events: int = 0
    different: int = 0
    repaired: int = 0
    unreadable: int = 0
    without_history: int = 0
    wrong: dict[UUID, tuple[str, ...]] = field(default_factory=dict)
    alone: dict[UUID, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """How many rows do not say what the log says, as far as anybody can tell."""
        return self.different - self.repaired + self.unreadable

    def note_wrong(self, saga_id: UUID, columns: tuple[str, ...]) -> None:
        """Count a row that differs."""
        self.different += 1
        if len(self.wrong) < EXAMPLES:
            self.wrong[saga_id] = columns

    def note_alone(self, saga_id: UUID, why: str) -> None:
        """Keep why a row was left alone."""
        if len(self.alone) < EXAMPLES:
            self.alone[saga_id] = why


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A row that has to be written; ``seen`` is the sequence that the old one stood at, if any."""

    wanted: dict[str, Any]
    seen: int | None


async def rebuild(
    pool: Pool, registry: SagaRegistry, *, check: bool, progress: OnProgress = lambda *_: None
) -> Report:
    """Compare every row with the log and, unless it is only a ``check``, write what differs."""
    report = Report()
    async for histories, rows in batches(pool, _IDS, ", ".join((*_COLUMNS, "held_claim"))):
        wrong: dict[UUID, _Wrong] = {}
        for told in histories:
            report.events += len(told.history)
            found = rows.get(told.saga_id)
            try:
                wanted = row_of(registry, told)
            except Unreadable as error:
                report.unreadable += 1
                report.note_alone(told.saga_id, str(error))
                continue
            if columns := _differing(wanted, found):
                report.note_wrong(told.saga_id, columns)
                wrong[told.saga_id] = _Wrong(wanted, found["next_sequence"] if found else None)
        if wrong and not check:
            await _repair(pool, registry, wrong, report)
        report.sagas += len(histories)
        progress(report.sagas, report.events)
    report.without_history = await pool.fetchval(_ALONE)
    return report


def _differing(wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The columns that are wrong, ``*`` for a row that is not there."""
    if found is None:
        return ("*",)
    # That a worker stumbles over a saga is in no history, only in its row, and that what was held
    # is held again, and why.
    held = found["held_claim"] is not None and found["held_claim"] == wanted["claim"]
    told = {"code", "message"} if held or found["code"] in (STUMBLED, LIMITED) else set()
    if wanted["behind"] is not None:  # whom it waits for, and whether it has its key by now
        told |= {"message"} if wanted["code"] == found["code"] == WAITING else set()
        own = wanted["business_key"].removesuffix(f"{BEHIND}{wanted['saga_id']}")
        told |= {"business_key"} if found["business_key"] == own else set()
    wrong = [
        name
        for name in _COLUMNS
        if name not in _LIVING and name not in told and found[name] != wanted[name]
    ]
    # Somebody drives it, or it is due at some time; a saga at rest is nobody's.
    active = wanted["next_at"] is not None
    if wanted["code"] == WAITING and wanted["status"] == "running":
        return tuple(wrong)  # it may have been taken up a moment ago
    if (found["next_at"] is not None) is not active or (found["owner"] and not active):
        wrong.append("next_at")
    return tuple(wrong)


class Unreadable(Exception):
    """This release can't say what the row should be: unknown events or an unknown definition."""


def row_of(registry: SagaRegistry, told: ScannedHistory) -> dict[str, Any]:
    """The row that belongs to a history. Raises ``Unreadable``. Pure.

    For a saga under way ``owner`` is who claimed the attempt that is out, and ``next_at`` when it
    is due by its history alone.
    """
    if told.unreadable is not None:
        raise Unreadable(told.unreadable)
    first, last = told.history[0], told.history[-1]
    try:
        state = replay(recorded.event for recorded in told.history)
    except IllegalTransition as error:
        raise Unreadable(f"its history makes no sense: {error}") from error
    start = state.start
    assert start is not None
    saga = registry.find(start.saga, start.version)
    if saga is None:
        raise Unreadable(f"this release does not know {start.saga} v{start.version}")
    flight = state.in_flight
    seen = status_row(saga, state, decide(saga, state), flight.worker if flight else None)
    due_in = _lease(told.history) if flight else seen.due_in
    return {
        "saga_id": told.saga_id,
        "saga": start.saga,
        "version": start.version,
        "status": seen.status,
        "business_key": start.business_key,
        "organization_id": start.organization_id,
        "instance_name": start.instance_name,
        "command_id": start.command_id,
        "command_hash": start.command_hash,
        "step": seen.step,
        "direction": seen.direction,
        "attempt": seen.attempt,
        "code": seen.code,
        "message": seen.message,
        "existing_instance": seen.existing_instance,
        "correlation_id": first.correlation_id,
        "causation_id": first.causation_id,
        "next_sequence": state.sequence,
        "created_at": first.recorded_at,
        "updated_at": last.recorded_at,
        "behind": getattr(start, "behind", None),
        "next_at": _due(first.recorded_at, last.recorded_at, due_in, seen.due_by),
        "owner": seen.owner,
        "scheduled_at": last.recorded_at,
        "claim": claim_of(told.history),
    }


def _lease(history: Sequence[Recorded]) -> float:
    last = history[-1].event
    return last.lease_seconds if isinstance(last, StepStarted | CompensationStarted) else 0.0


def _due(
    began: datetime, last: datetime, due_in: float | None, due_by: float | None
) -> datetime | None:
    if due_in is None:
        return None
    due = last + timedelta(seconds=due_in)
    return due if due_by is None else min(due, began + timedelta(seconds=due_by))


async def _repair(
    pool: Pool, registry: SagaRegistry, wrong: Mapping[UUID, _Wrong], report: Report
) -> None:
    """Write these rows as the log has them, under their locks, so that nobody appends meanwhile."""
    try:
        async with pool.acquire() as connection, connection.transaction():
            locked = await connection.fetch(_LOCK, list(wrong))
            at = {row["saga_id"]: row["next_sequence"] for row in locked}
            rows = {id_: one.wanted for id_, one in wrong.items() if at.get(id_) == one.seen}
            moved = [saga_id for saga_id in wrong if saga_id not in rows]
            for told in await read(connection, moved):
                rows[told.saga_id] = row_of(registry, told)
            await connection.execute(_WRITE, json.dumps(list(rows.values()), default=_text))
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.TransactionRollbackError) as error:
        if len(wrong) == 1:
            report.note_alone(next(iter(wrong)), str(error))
            return
        for saga_id, one in wrong.items():  # find the one, and write its neighbours
            await _repair(pool, registry, {saga_id: one}, report)
    else:
        report.repaired += len(wrong)


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


_IDS: Final = """
SELECT saga_id FROM evosaga.saga_events WHERE saga_id >= $1 AND sequence = 0
ORDER BY saga_id LIMIT $2
"""
_ALONE: Final = """
SELECT count(*) FROM evosaga.sagas AS saga WHERE NOT EXISTS (
    SELECT FROM evosaga.saga_events AS event
    WHERE event.saga_id = saga.saga_id AND event.sequence = 0)
"""
_LOCK: Final = """
SELECT saga_id, next_sequence FROM evosaga.sagas
WHERE saga_id = ANY($1) ORDER BY saga_id FOR UPDATE
"""
_NAMES: Final = ", ".join(_COLUMNS)
_TYPED: Final = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
_SET: Final = ", ".join(
    f"{name} = excluded.{name}"
    for name in _COLUMNS
    if name not in ("saga_id", "business_key", *_LIVING)
)
# One that waited and has its key keeps it.
# A saga that is under way by the log keeps who drives it and when it is looked at, if that is said.
_WRITE: Final = f"""
INSERT INTO evosaga.sagas AS saga ({_NAMES})
SELECT {_NAMES} FROM jsonb_to_recordset($1::jsonb) AS told ({_TYPED})
ON CONFLICT (saga_id) DO UPDATE SET {_SET},
    business_key = CASE
        WHEN excluded.business_key = saga.business_key || '{BEHIND}' || saga.saga_id
            THEN saga.business_key ELSE excluded.business_key END,
    owner = CASE WHEN excluded.next_at IS NOT NULL AND saga.held_claim IS NOT NULL THEN saga.owner
                 WHEN excluded.next_at IS NOT NULL THEN coalesce(saga.owner, excluded.owner) END,
    next_at = CASE WHEN excluded.next_at IS NOT NULL
              THEN coalesce(saga.next_at, excluded.next_at) END
"""  # noqa: S608  # constants only
