"""Two workers of WhatsApp with one Evolution server and one Redis, on the kit's cluster.

What they decide with (admission, arbitration) is the product's own, on dicts.
"""

from collections import Counter
from typing import Any
from uuid import UUID

from evosaga.events.commands import Command
from evosaga.events.model import SagaRejected
from evosaga.orchestrator.commands.claims import Request
from evosaga.orchestrator.commands.testing.memory import Status
from evosaga.orchestrator.commands.testing.scene import Scene as KitScene
from evosaga.orchestrator.commands.testing.workers import Worker
from evosaga.sagas.admission import Admission, Candidate, Refusal
from evosaga.sagas.whatsapp.admission_rules import Policy, arbitrate
from evosaga.sagas.whatsapp.repairs import admission
from evosaga.sagas.whatsapp.repairs.remove_orphan import REMOVE_ORPHAN
from evosaga.sagas.whatsapp.repairs.watch_instance import WATCH_INSTANCE
from tests.harness.simulation.database import Database
from tests.harness.simulation.outside import Evolution, Redis
from tests.harness.simulation.workers import KEYS, services_of


class Cluster(KitScene):
    """``fenced`` False switches off the look at the lease before each call (R7), so that the
    sequence of the log is all that stops a zombie.
    """

    database: Database
    deadline: float | None = None

    def prepare(self) -> None:
        self.evolution = Evolution(self.loop.time, self.loop.call_later)
        self.redis = Redis()
        self.sent: Counter[tuple[str, str]] = Counter()
        """How many creates and deletes left a worker, by birthmark."""
        self.strangers: dict[str, str] = {}
        """Instances that are not ours, with their tokens."""
        self.founded: dict[UUID, str] = {}
        """Instances of ours that were there before, by the saga that had made each."""
        self.by_hand: set[str] = set()
        """Names under which people did something behind our back."""

    def new_database(self) -> Database:
        return Database(self.loop.time, self.told)

    def services_of(self, worker: Worker) -> Any:
        return services_of(worker, self)

    def admit(self, worker: Worker, request: Request) -> Admission | Refusal:
        if request.saga.name == WATCH_INSTANCE.name:
            return self._admit_watch(request.input)
        if request.saga.name == REMOVE_ORPHAN.name:
            return self._admit_removal(worker, request.saga_id, request.input)
        policy = Policy(KEYS.current, deadline_seconds=self.deadline)
        asked = Candidate(request.saga_id, request.input, request.saga.on_conflict)
        [verdict] = arbitrate(self.database.found(), [asked], policy)
        return verdict

    def _admit_watch(self, data: Any) -> Admission | Refusal:
        creator = self.database.sagas[data.created_by]
        undone = creator.row.status in ("compensating", "compensated", "failed")
        if undone and creator.row.direction != "forward":
            return Admission(f"watch/{data.created_by}", facts=data.model_dump(mode="json"))
        return Refusal("not_undone", "no create of that id was rolled back")

    def _admit_removal(self, worker: Worker, saga_id: UUID, data: Any) -> Admission | Refusal:
        in_use = {row.instance_name for row in self.database.integrations.values()}
        over = {s.saga_id for s in self.database.sagas.values() if not s.open}
        return admission._removal(worker.services, saga_id, data, in_use, over)

    # --- what leaves the engines -----------------------------------------------------------------

    def asked(self, worker: Worker, kind: str, name: str, token: str) -> None:
        """S5 and S8, at the moment at which a create or a delete leaves a worker."""
        self.sent[kind, token] += 1
        self.notes["unknown resolved as not applied"] += (
            kind == "create" and self.sent[kind, token] > 1
        )
        if not any(self._claims(saga, worker, name) for saga in self.database.sagas.values()):
            self.broken.append(f"S5: {worker.name} sends {kind} {name} without a claim")
        if kind == "delete" and token not in self.tokens():
            self.broken.append(f"S8: {worker.name} deletes {name} with a key that isn't its token")

    def _claims(self, saga: Status, worker: Worker, name: str) -> bool:
        """Whether the log says that this worker is at work on that instance now.

        Without the fence a zombie may be late: then it is enough that it had a claim once.
        """
        start = saga.start
        if isinstance(start, SagaRejected) or name != start.facts["instance_name"]:
            return False
        if not self.fenced:
            events = self.database.history(saga.saga_id)
            return any(getattr(event, "worker", None) == worker.name for event in events)
        flight = saga.state.in_flight if saga.state is not None else None
        if flight is None:
            return False
        # What was held is tried again under the claim that is there, by whoever has its row.
        mine = saga.owner if saga.held_claim is not None else flight.worker
        return mine == worker.name

    def tokens(self) -> dict[str, UUID]:
        """The birthmarks of all instances that were or may be made here, with their makers."""
        makers = {*self.database.sagas, *self.database.integrations, *self.founded}
        return {KEYS.instance_token(id_, KEYS.current): id_ for id_ in makers}

    def reconcile(self) -> None:
        """``evosaga.orchestrator.whatsapp.reconciliation`` in short: what is ours and nobody's any
        more is removed.

        It is needed only where nobody asks his lease. Otherwise whatever is left over should have
        been seen to by the saga itself, or by the watch that it asks for.
        """
        rows = {row.instance_name for row in self.database.integrations.values()}
        busy = {s.start.instance_name for s in self.database.sagas.values() if s.open}
        tokens = self.tokens()
        for name, token in (self.evolution.rows | self.evolution.memory).items():
            if token in tokens and name not in rows | busy:
                self.notes["left to the reconciler"] += 1
                if self.fenced:
                    self.broken.append(f"L3: {name} is left over, and its saga could have known")
                data = {"instance_name": name, "created_by": str(tokens[token])}
                data |= {"key_id": KEYS.current, "organization_id": str(tokens[token])}
                number = self.notes["left to the reconciler"]
                self.publish(Command(f"reconcile-{number}", "instance.remove", data))
