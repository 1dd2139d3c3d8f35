"""Our Postgres, in memory: the log and the status rows.

``commit`` keeps the contract of ``evosaga.events.event_log.EventLog``: the expected sequence or
``VersionConflict``, and a joined effect that is there if, and only if, its events are.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from evosaga.events.append import Append, Appended, StatusRow, Written
from evosaga.events.event_log import Hold, VersionConflict
from evosaga.events.model import Recorded, SagaEvent, SagaRejected, SagaStarted
from evosaga.events.turns import WAITING, Ahead, Turn
from evosaga.orchestrator.engine.state import IllegalTransition, State, evolve
from evosaga.sagas.conflicts import OpenSaga

OPEN: Final = ("running", "compensating", "failed")


@dataclass
class Status:
    """A row of ``evosaga.sagas``. Times are the database's, in seconds."""

    saga_id: UUID
    start: SagaStarted | SagaRejected
    created_at: float
    correlation_id: str
    sequence: int = 0
    state: State | None = field(default_factory=State)
    """What its history amounts to; None: it makes no sense."""
    row: StatusRow = field(default_factory=lambda: StatusRow("running"))
    owner: str | None = None
    next_at: float | None = None
    held_claim: int | None = None
    holds: int | None = None
    doubted_at: float | None = None
    key: str = ""
    """Its business key: another one while it waits behind a saga."""
    asked_since: UUID | None = None
    """The parked saga that it was found behind, and goes on waiting for."""

    def __post_init__(self) -> None:
        self.key = self.start.business_key

    @property
    def behind(self) -> UUID | None:
        return self.start.behind if isinstance(self.start, SagaStarted) else None

    def evolve(self, event: SagaEvent) -> None:
        try:
            self.state = evolve(self.state, event) if self.state is not None else None
        except IllegalTransition:
            self.state = None

    @property
    def open(self) -> bool:
        return self.row.status in OPEN


@dataclass
class Database:
    """``told`` hears of every commit, after it. ``tables`` are the author's own rows, for effects
    that join a commit: what they are handed as their connection."""

    clock: Callable[[], float]
    told: Callable[[UUID, Sequence[SagaEvent]], None]
    sagas: dict[UUID, Status] = field(default_factory=dict)
    events: dict[UUID, list[Recorded]] = field(default_factory=dict)
    tables: Any = None
    conflicts: int = 0

    def connection(self) -> Any:
        """What a joined effect gets as its connection."""
        return self.tables

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def history(self, saga_id: UUID) -> list[SagaEvent]:
        return [recorded.event for recorded in self.events.get(saga_id, ())]

    def commit(self, append: Append[State]) -> Appended[State]:
        """All or nothing. Raises ``VersionConflict``, or whatever a joined effect raises."""
        saga = self.sagas[append.saga_id]
        if saga.sequence != append.expected:
            self.conflicts += 1
            raise VersionConflict(f"{append.saga_id} is past {append.expected}")
        written = Written(append.events, append.row, append.state)
        if append.join is not None:
            before = copy.deepcopy(self.tables)
            try:
                [outcome] = at_once(append.join.run(self.connection(), [append.join.context]))
                after = append.join.then(outcome)
            except Exception:
                self.tables = before
                raise
            events = [*append.events, *after.events] if after.row.holds is None else []
            written = after._replace(events=events)
        self.write(saga, written.events, written.row, append.causation_id)
        return Appended(written.events, self.now(), written.row, written.state)

    def write(
        self, saga: Status, events: Sequence[SagaEvent], row: StatusRow, cause: str | None
    ) -> None:
        at, told = self.clock(), self.events.setdefault(saga.saga_id, [])
        for event in events:
            place = (saga.saga_id, saga.sequence, self.now(), saga.correlation_id, cause, event)
            told.append(Recorded(**dict(zip(Recorded.model_fields, place, strict=True))))
            saga.sequence += 1
            saga.evolve(event)
        if row.kept:  # its driver, or whoever tries again under a claim that is held, goes on
            saga.row = replace(row, owner=saga.owner)
            saga.next_at = at if saga.owner is None else saga.next_at
            self.told(saga.saga_id, events)
            return
        saga.row, saga.owner, saga.next_at = row, row.owner, None
        saga.held_claim = saga.sequence - 1 if row.holds is not None else None
        saga.holds, saga.doubted_at = row.holds, None
        if row.due_in is not None:
            by = at + row.due_in if row.due_by is None else saga.created_at + row.due_by
            saga.next_at = min(at + row.due_in, by)
        self.told(saga.saga_id, events)

    def ahead_of(self, saga: Status) -> Status | None:
        """The open saga that this one waits for, a parked one first."""
        behind = saga.behind
        while behind is not None and self.sagas[behind].row.status in ("compensated", "rejected"):
            behind = self.sagas[behind].behind
        wants, name = as_open(saga).wants, saga.start.instance_name
        found = [
            one
            for one in self.sagas.values()
            if one.open
            and one is not saga
            and (
                one.saga_id == behind
                or one.key == wants
                or (name is not None and one.behind is None and one.start.instance_name == name)
            )
        ]
        return next((one for one in found if one.row.status == "failed"), next(iter(found), None))

    def turn_has_come(self, saga: Status) -> bool:
        """Whether a sweep would look at one that waits."""
        if saga.row.code != WAITING or saga.owner is not None or not saga.open:
            return False
        ahead = self.ahead_of(saga)
        return ahead is None or (ahead.row.status == "failed" and saga.asked_since != ahead.saga_id)

    def take_turn(self, saga_id: UUID, owner: str) -> Turn:
        """``evosaga.events.turns.take`` on dicts."""
        saga = self.sagas[saga_id]
        if saga.owner != owner:
            return Turn("lost")
        if saga.key == as_open(saga).wants or (ahead := self.ahead_of(saga)) is None:
            saga.key = as_open(saga).wants
            return Turn("come")
        row = ahead.row
        return Turn("not yet", Ahead(ahead.saga_id, ahead.start.saga, row.status, row.step))

    def wait_for_turn(self, saga_id: UUID, owner: str, message: str, due_by: float | None) -> None:
        """``evosaga.events.turns.give_back`` on dicts."""
        saga = self.sagas[saga_id]
        if saga.owner == owner:
            ahead = self.ahead_of(saga)
            saga.asked_since = ahead.saga_id if ahead else None
            saga.owner, saga.held_claim, saga.holds, saga.doubted_at = None, None, None, None
            saga.next_at = saga.created_at + due_by if due_by is not None else None
            saga.row = replace(saga.row, owner=None, code=WAITING, message=message)

    def hold(self, hold: Hold) -> Literal["held", "moved", "lost"]:
        """``EventLog.hold`` on dicts."""
        saga, at = self.sagas[hold.saga_id], self.clock()
        if saga.owner != hold.owner:
            return "lost"
        if saga.sequence != hold.sequence:
            return "moved"
        saga.owner, saga.held_claim, saga.holds = None, hold.claim, hold.holds
        saga.row = replace(saga.row, owner=None, code=hold.code, message=hold.message)
        by = saga.created_at + hold.due_by if hold.due_by is not None else at + hold.due_in
        saga.next_at = min(at + hold.due_in, by)
        saga.doubted_at = at if hold.in_doubt else saga.doubted_at
        return "held"


def as_open(saga: Status) -> OpenSaga:
    """It as those are weighed against it that want the same."""
    start, row = saga.start, saga.row
    return OpenSaga(
        saga.saga_id,
        start.saga,
        row.status,
        saga.key,
        start.organization_id,
        start.instance_name,
        row.step,
        saga.behind,
    )


def at_once(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")
