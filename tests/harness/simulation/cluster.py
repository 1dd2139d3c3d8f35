"""Workers, the stores they share, and what goes on around an engine.

Accepting commands, the sweep that takes over, the relay that publishes follow-ups and the
reconciler are written down here once more on dicts, in a few lines each; what they decide with
(admission, arbitration, steering, the first events of a saga) is the product's own.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from evosaga.events.commands import STEERING, BadCommand, Command
from evosaga.events.model import FollowUp, SagaEvent, SagaRejected
from evosaga.orchestrator.commands import accept
from evosaga.orchestrator.commands.control import Restart, apply_control
from evosaga.orchestrator.engine.decider import can_compensate
from evosaga.orchestrator.engine.repeated_holds import ClaimedRow
from evosaga.orchestrator.engine.state import State
from evosaga.sagas.definition import Admission, Refusal
from evosaga.sagas.whatsapp.admission_rules import Policy, arbitrate
from evosaga.sagas.whatsapp.repairs import admission
from evosaga.sagas.whatsapp.repairs.remove_orphan import REMOVE_ORPHAN
from evosaga.sagas.whatsapp.repairs.watch_instance import WATCH_INSTANCE
from tests.harness.simulation.database import CATALOGUE, Database, Status
from tests.harness.simulation.loop import Loop, entered
from tests.harness.simulation.outside import Evolution, Redis
from tests.harness.simulation.workers import KEYS, TTL, DirectLog, Op, Worker

SLEEP: Final = 20.0
"""Seconds until a worker that sleeps wakes up by itself."""
_GRACE: Final = 5.0


class Cluster:
    """Some workers on one database, one Redis and one Evolution server.

    ``fenced`` False switches off the look at the lease before each call (R7), so that the
    sequence of the log is all that stops a zombie.
    """

    def __init__(
        self, *, workers: int = 2, fenced: bool = True, deadline: float | None = None
    ) -> None:
        self.fenced = fenced
        self.deadline = deadline
        self.loop = Loop()  # type: ignore[abstract]  # nothing here needs the rest
        self.evolution = Evolution(self.loop.time, self.loop.call_later)
        self.redis = Redis()
        self.database = Database(self.loop.time, self._told)
        self.pending: list[Op] = []
        """Calls that are out, oldest first."""
        self.notes: Counter[str] = Counter()
        self.broken: list[str] = []
        """Laws that were seen broken on the way."""
        self.sent: Counter[tuple[str, str]] = Counter()
        """How many creates and deletes left a worker, by birthmark."""
        self.strangers: dict[str, str] = {}
        """Instances that are not ours, with their tokens."""
        self.founded: dict[UUID, str] = {}
        """Instances of ours that were there before, by the saga that had made each."""
        self.by_hand: set[str] = set()
        """Names under which people did something behind our back."""
        self.workers: list[Worker] = []
        with entered(self.loop):  # a lease counts from its first beat, which is one of this clock
            for _ in range(workers):
                self.hire()

    # --- workers ---------------------------------------------------------------------------------

    def hire(self) -> Worker:
        worker = Worker(f"w{len(self.workers) + 1}", self)
        self.workers.append(worker)
        return worker

    def awake(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.awake]

    def crash(self, worker: Worker) -> None:
        """Nothing of it ever runs again; another one is started in its place."""
        worker.dead, worker.gone_at = True, self.loop.now
        self.notes["crash"] += 1
        self.pending = [op for op in self.pending if op.actor is not worker]
        self.hire()

    def sleep(self, worker: Worker, *, beat_first: bool, seconds: float = SLEEP) -> None:
        """Stop it, as SIGSTOP would; ``beat_first``: what its waking up begins with."""
        worker.asleep, worker.gone_at = True, self.loop.now
        worker.lease.fall_asleep()
        for op in self.pending:  # what it is about to send has passed the look at its lease
            op.late = op.late or op.actor is worker
        self.loop.call_later(seconds, self.wake, worker, beat_first)

    def wake(self, worker: Worker, beat_first: bool) -> None:
        """It may be a zombie; whether its heartbeat or its sagas come first is chance."""
        if worker.dead or not worker.asleep:
            return
        over = worker.lease.is_over()
        self.notes["zombie woken" if over else "sleeper woken"] += 1
        if beat_first or not over:
            worker.lease.beat_now()
        else:
            self.loop.call_later(0.05, worker.lease.beat_now)
        self.loop.wake(worker)

    # --- commands --------------------------------------------------------------------------------

    def publish(self, command: Command, worker: Worker | None = None) -> None:
        """Have a command taken up by a worker."""
        worker = worker or self.awake()[0]
        worker.runs(self.loop.create_task, self._take(worker, command))

    async def _take(self, worker: Worker, command: Command) -> None:
        if command.type in STEERING:
            log: Any = DirectLog(worker)
            with suppress(BadCommand):  # it is too late, mostly
                said = await apply_control(log, worker.services, CATALOGUE, command, worker.engine)
                if isinstance(said, Restart):
                    await self._take(worker, said.command)
            return
        worker.engine.bind_lease()
        state = await worker.op("accept", lambda: self._accept(worker, command), command.saga_id)
        if state is not None:
            worker.engine.start(command.saga_id, state, str(command.saga_id))

    def _accept(self, worker: Worker, command: Command) -> State | None:
        """``evosaga.orchestrator.commands.accept`` on dicts; None: there is nothing to drive."""
        if command.saga_id in self.database.sagas:
            self.notes["duplicate command"] += 1
            return None
        request = accept.parse_request(CATALOGUE, command)
        verdict: Admission | Refusal
        if request.saga.name == WATCH_INSTANCE.name:
            verdict = self._admit_watch(request.input)
        elif request.saga.name == REMOVE_ORPHAN.name:
            verdict = self._admit_removal(worker, command.saga_id, request.input)
        else:
            policy = Policy(KEYS.current, deadline_seconds=self.deadline)
            asked = [(command.saga_id, request.input)]
            [verdict] = arbitrate(self.database.found(), asked, policy)
        append = accept._first_commit(worker.services, request, verdict, worker.name)
        start: Any = append.events[0]
        status = Status(command.saga_id, start, self.loop.now, str(command.saga_id))
        self.database.sagas[command.saga_id] = status
        self.database.write(status, append.events, append.row, command.id)
        return None if isinstance(verdict, Refusal) else append.state

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

    def steer(self, what: str, saga_id: UUID, worker: Worker) -> None:
        """A person cancels or replays, by way of this worker."""
        self.notes[what] += 1
        number = self.notes["saga.cancel"] + self.notes["saga.replay"]
        wish = {"saga_id": str(saga_id), "if_possible": True}
        self.publish(Command(f"person-{number}", what, wish), worker)

    def turnable(self) -> Status | None:
        """A saga that a cancel would still turn round."""
        for saga in self.database.sagas.values():
            state = saga.state if saga.open else None
            if state is not None and state.direction == "forward":
                definition = CATALOGUE.find(saga.start.saga, saga.start.version)
                if definition is not None and can_compensate(definition, state):
                    return saga
        return None

    def _told(self, saga_id: UUID, events: Sequence[SagaEvent]) -> None:
        """The relay: commands that events bring with them are published."""
        first = self.database.sagas[saga_id].sequence - len(events)
        for number, event in enumerate(events, first):
            self.notes[event.type] += 1
            self.notes["unknown resolved as applied"] += "adopted" in getattr(event, "result", ())
            follow: FollowUp | None = getattr(event, "follow_up", None)
            if follow is not None:
                self.notes[f"follow-up {follow.type}"] += 1
                command = Command(f"{saga_id}:{number}", follow.type, dict(follow.data))
                self.loop.call_later(0.05, self._relay, command)

    def _relay(self, command: Command) -> None:
        if self.awake():
            self.publish(command)
        else:
            self.loop.call_later(1.0, self._relay, command)

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

    # --- looking after what nobody drives --------------------------------------------------------

    def _due_at(self, saga: Status) -> float | None:
        """When the sweep of a worker that doesn't drive it would take this saga."""
        if saga.row.status not in ("running", "compensating"):
            return None
        if saga.owner is None:
            return saga.next_at
        owner = next(w for w in self.workers if w.name == saga.owner)
        if not owner.awake or owner.lease.is_over():
            return owner.gone_at + TTL
        return saga.next_at + _GRACE if saga.next_at is not None else None

    def next_due(self) -> float | None:
        """When the next sweep finds something."""
        times = [
            max(at, self.loop.now)
            for saga in self.database.sagas.values()
            if (at := self._due_at(saga)) is not None
            and any(saga.saga_id not in w.engine.driving for w in self.awake())
        ]
        return min(times, default=None)

    def sweep(self) -> None:
        """``evosaga.orchestrator.engine.recovery`` on dicts: what is due goes to a worker that is
        alive."""
        for saga in self.database.sagas.values():
            at = self._due_at(saga)
            if at is None or at > self.loop.now + 1e-9:
                continue
            takers = [w for w in self.awake() if saga.saga_id not in w.engine.driving]
            if takers:
                self.notes["take-over"] += saga.owner is not None
                self.notes["held again"] += saga.held_claim is not None
                taken = {saga.saga_id: self._taken(saga)}
                saga.owner, saga.next_at = takers[0].name, self.loop.now + 60.0
                history = {saga.saga_id: [*self.database.events[saga.saga_id]]}
                takers[0].runs(takers[0].engine.bind_lease)
                takers[0].runs(takers[0].engine.take_over, history, self.database.now(), taken)

    def _taken(self, saga: Status) -> ClaimedRow:
        at = saga.doubted_at
        return ClaimedRow(
            saga.owner,
            False,
            saga.held_claim,
            saga.holds,
            datetime.fromtimestamp(at, UTC) if at is not None else None,
            saga.row.code,
            saga.row.message,
        )

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
