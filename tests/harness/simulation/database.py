"""Our Postgres, in memory: the log, the status rows, the table of integrations.

``commit`` keeps the contract of ``evosaga.events.event_log.EventLog``: the expected sequence or
``VersionConflict``, and a joined effect that is there if, and only if, its events are. The effects
of the steps that join a commit are written down here once more, on dicts.
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
from evosaga.orchestrator.engine.state import IllegalTransition, State, evolve
from evosaga.sagas.definition import InCommit, Retry, Saga, Step
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected
from evosaga.sagas.registry import SagaRegistry, registry_of
from evosaga.sagas.whatsapp import admission_facts
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION
from evosaga.sagas.whatsapp.repairs.remove_orphan import REMOVE_ORPHAN
from evosaga.sagas.whatsapp.repairs.watch_instance import WATCH_INSTANCE
from evosaga.sagas.whatsapp.services import Context

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
class Integration:
    """A row of ``healthcare.integrations``."""

    organization_id: UUID
    instance_name: str
    status: str = "pending"
    key_id: str | None = None


@dataclass
class Database:
    """``told`` hears of every commit, after it."""

    clock: Callable[[], float]
    told: Callable[[UUID, Sequence[SagaEvent]], None]
    sagas: dict[UUID, Status] = field(default_factory=dict)
    events: dict[UUID, list[Recorded]] = field(default_factory=dict)
    integrations: dict[UUID, Integration] = field(default_factory=dict)
    conflicts: int = 0

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
            before = copy.deepcopy(self.integrations)
            try:
                [outcome] = at_once(append.join.run(self, [append.join.context]))
                after = append.join.then(outcome)
            except Exception:
                self.integrations = before
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

    def found(self) -> admission_facts.Found:
        """Everything, as admission sees it."""
        rows = [
            admission_facts.Row(id_, r.organization_id, r.instance_name, r.status, key_id=r.key_id)
            for id_, r in self.integrations.items()
        ]
        return admission_facts.Found(
            rows,
            [
                admission_facts.OpenSaga(
                    s.saga_id,
                    s.start.saga,
                    s.row.status,
                    s.start.business_key,
                    s.start.organization_id,
                    s.start.instance_name,
                    s.row.step,
                    s.behind,
                    facts=s.start.facts,
                )
                for s in self.sagas.values()
                if s.open
                and isinstance(s.start, SagaStarted)
                and s.start.saga != WATCH_INSTANCE.name
            ],
        )


def at_once(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


async def save(db: Database, contexts: Sequence[Context]) -> list[Outcome]:
    [ctx] = contexts
    if any(r.organization_id == ctx.input.organization_id for r in db.integrations.values()):
        return [Rejected("integration_exists", "another row is there")]
    name, key = ctx.facts["instance_name"], ctx.facts["key_id"]
    db.integrations[ctx.saga_id] = Integration(ctx.input.organization_id, name, key_id=key)
    return [Done({"integration_id": str(ctx.saga_id)})]


async def unsave(db: Database, contexts: Sequence[Context]) -> list[Outcome]:
    return [
        Done({"deleted": db.integrations.pop(ctx.saga_id, None) is not None}) for ctx in contexts
    ]


async def mark(db: Database, contexts: Sequence[Context]) -> list[Outcome]:
    [ctx] = contexts
    if "behind" in ctx.facts and (ahead := _ahead(db, ctx)):
        if any(saga.row.status == "failed" for saga in ahead):
            return [Rejected("ahead_parked", "what is ahead of it is parked")]
        return [Held("waiting", "waits for its turn", min(30.0, max(0.2, ctx.age / 4)))]
    row = db.integrations.get(_row_id(ctx))
    if row is None:
        gone = Rejected("not_found", "the row is gone already")
        return [Done({"note": "nothing_left"}) if "behind" in ctx.facts else gone]
    before, row.status = row.status, "deleting"
    return [Done({"status": before})]


async def unmark(db: Database, contexts: Sequence[Context]) -> list[Outcome]:
    [ctx] = contexts
    if row := db.integrations.get(_row_id(ctx)):
        row.status = ctx.results.get("mark", {}).get("status") or ctx.facts["status"]
    return [Done()]


async def delete(db: Database, contexts: Sequence[Context]) -> list[Outcome]:
    return [Done({"deleted": db.integrations.pop(_row_id(c), None) is not None}) for c in contexts]


def _row_id(ctx: Context) -> UUID:
    return UUID(ctx.facts["integration_id"])


def _ahead(db: Database, ctx: Context) -> list[Status]:
    """The open sagas that this one waits for."""
    behind: UUID | None = UUID(ctx.facts["behind"])
    while behind is not None and db.sagas[behind].row.status in ("compensated", "rejected"):
        behind = db.sagas[behind].behind
    key = f"whatsapp/evolution/{ctx.facts['organization_id']}"
    return [
        saga
        for saga in db.sagas.values()
        if saga.open
        and (
            saga.saga_id == behind
            or saga.start.business_key == key
            or (
                saga.start.instance_name == ctx.facts["instance_name"]
                and saga.behind is None
                and saga.saga_id != ctx.saga_id
            )
        )
    ]


_IN_COMMIT: Final[dict[tuple[str, str], tuple[Any, Any]]] = {
    (CREATE_INTEGRATION.name, "postgres"): (InCommit(save), InCommit(unsave)),
    (DELETE_INTEGRATION.name, "mark"): (InCommit(mark), InCommit(unmark)),
    (DELETE_INTEGRATION.name, "postgres"): (InCommit(delete), None),
}


def _in_memory(saga: Saga, step: Step) -> Step:
    """The step with few attempts, so that two faults use them up, and with its rows in dicts."""
    do, undo = _IN_COMMIT.get((saga.name, step.name), (step.do, step.undo))
    retry = Retry(attempts=2, first=step.retry.first)
    return replace(
        step, do=do, undo=undo, retry=retry, probe=None if do is not step.do else step.probe
    )


CATALOGUE: Final[SagaRegistry] = registry_of(
    replace(saga, steps=tuple(_in_memory(saga, step) for step in saga.steps))
    for saga in (CREATE_INTEGRATION, DELETE_INTEGRATION, WATCH_INSTANCE, REMOVE_ORPHAN)
)
