"""Our Postgres in memory, with the table of integrations.

The log and the status rows are the kit's (``evosaga.orchestrator.commands.testing.memory``). The
effects of the steps that join a commit are written down here once more, on dicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from evosaga.events.model import SagaEvent, SagaStarted
from evosaga.orchestrator.commands.testing import memory
from evosaga.sagas.definition import InCommit, Retry, Saga, Step
from evosaga.sagas.outcome import Done, Outcome, Rejected
from evosaga.sagas.registry import SagaRegistry, registry_of
from evosaga.sagas.whatsapp import admission_facts
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION
from evosaga.sagas.whatsapp.repairs.remove_orphan import REMOVE_ORPHAN
from evosaga.sagas.whatsapp.repairs.watch_instance import WATCH_INSTANCE
from evosaga.sagas.whatsapp.services import Context


@dataclass
class Integration:
    """A row of ``healthcare.integrations``."""

    organization_id: UUID
    instance_name: str
    status: str = "pending"
    key_id: str | None = None


class Database(memory.Database):
    """``tables`` are the integrations, by id; joined effects get the whole database."""

    def __init__(
        self, clock: Callable[[], float], told: Callable[[UUID, Sequence[SagaEvent]], None]
    ) -> None:
        super().__init__(clock, told, tables={})

    @property
    def integrations(self) -> dict[UUID, Integration]:
        rows: dict[UUID, Integration] = self.tables
        return rows

    def connection(self) -> Any:
        return self

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
                    s.key,
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
        step,
        do=do,
        undo=undo,
        retry=retry,
        undo_retry=None,
        probe=None if do is not step.do else step.probe,
    )


CATALOGUE: Final[SagaRegistry] = registry_of(
    replace(saga, steps=tuple(_in_memory(saga, step) for step in saga.steps))
    for saga in (CREATE_INTEGRATION, DELETE_INTEGRATION, WATCH_INSTANCE, REMOVE_ORPHAN)
)
