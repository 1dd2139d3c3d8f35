"""Workers, the log they share, and what goes on around an engine.

Accepting commands, the sweep that takes over and the relay that publishes follow-ups are written
down here once more on dicts, in a few lines each; what they decide with is the product's own.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from evosaga.events.commands import STEERING, BadCommand, Command
from evosaga.events.model import FollowUp, SagaEvent, SagaRejected, StepStarted
from evosaga.orchestrator.commands import accept
from evosaga.orchestrator.commands.control import Restart, apply_control
from evosaga.orchestrator.commands.testing.loop import Loop, entered
from evosaga.orchestrator.commands.testing.memory import Database, Status, as_open, at_once
from evosaga.orchestrator.commands.testing.workers import TTL, DirectLog, Op, Worker
from evosaga.orchestrator.engine.decider import can_compensate
from evosaga.orchestrator.engine.repeated_holds import ClaimedRow
from evosaga.orchestrator.engine.state import State
from evosaga.sagas.admission import Admission, AdmitTogether, Candidate, Refusal
from evosaga.sagas.conflicts import Queues, weigh
from evosaga.sagas.definition import admission_by_key
from evosaga.sagas.registry import SagaRegistry

SLEEP: Final = 20.0
"""Seconds until a worker that sleeps wakes up by itself."""
_GRACE: Final = 5.0


class Cluster:
    """Some workers on one database and one world outside.

    ``fenced`` False switches off the look at the lease before each attempt, so that the sequence of
    the log is all that stops a zombie.
    """

    def __init__(self, registry: SagaRegistry, *, workers: int = 2, fenced: bool = True) -> None:
        self.registry = registry
        self.fenced = fenced
        self.loop = Loop()  # type: ignore[abstract]  # nothing here needs the rest
        self.database = self.new_database()
        self.pending: list[Op] = []
        """Calls that are out, oldest first."""
        self.notes: Counter[str] = Counter()
        self.broken: list[str] = []
        """Laws that were seen broken on the way."""
        self.workers: list[Worker] = []
        self.prepare()
        with entered(self.loop):  # a lease counts from its first beat, which is one of this clock
            for _ in range(workers):
                self.hire()

    # --- for those who have a world of their own ---------------------------------------------

    def new_database(self) -> Database:
        return Database(self.loop.time, self.told)

    def prepare(self) -> None:
        """Called before the first worker is hired."""

    def services_of(self, worker: Worker) -> Any:
        """What that worker's steps are handed."""
        return None

    def new_worker(self, name: str) -> Worker:
        return Worker(name, self)

    def admit(self, worker: Worker, request: accept.Request) -> Admission | Refusal:
        """The verdict of the saga's own admission, and of what it declares for a taken key."""
        saga, connection = request.saga, self.database.connection()
        if isinstance(saga.admit, AdmitTogether):
            asked = [Candidate(request.saga_id, request.input, saga.on_conflict)]
            [verdict] = at_once(saga.admit.run(connection, worker.services, asked))
        else:
            admit = saga.admit or admission_by_key(saga)
            pairs = [(request.saga_id, request.input)]
            [verdict] = at_once(admit(connection, worker.services, pairs))
        found: Admission | Refusal = verdict
        if isinstance(found, Refusal) or found.behind is not None:
            return found
        queues = Queues(as_open(one) for one in self.database.sagas.values() if one.open)
        queue = queues.of(found.business_key, found.instance_name)
        return weigh(saga.on_conflict, request.saga_id, found, queue)

    def reconcile(self) -> None:
        """What jobs would put right, once nothing goes wrong any more."""

    # --- workers -----------------------------------------------------------------------------

    def hire(self) -> Worker:
        worker = self.new_worker(f"w{len(self.workers) + 1}")
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

    # --- commands ----------------------------------------------------------------------------

    def publish(self, command: Command, worker: Worker | None = None) -> None:
        """Have a command taken up by a worker."""
        worker = worker or self.awake()[0]
        worker.runs(self.loop.create_task, self._take(worker, command))

    async def _take(self, worker: Worker, command: Command) -> None:
        if command.type in STEERING:
            log: Any = DirectLog(worker)
            with suppress(BadCommand):  # it is too late, mostly
                said = await apply_control(
                    log, worker.services, self.registry, command, worker.engine
                )
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
        request = accept.parse_request(self.registry, command)
        verdict = self.admit(worker, request)
        append = accept._first_commit(worker.services, request, verdict, worker.name)
        start: Any = append.events[0]
        status = Status(command.saga_id, start, self.loop.now, str(command.saga_id))
        self.database.sagas[command.saga_id] = status
        self.database.write(status, append.events, append.row, command.id)
        return None if isinstance(verdict, Refusal) else append.state

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
                definition = self.registry.find(saga.start.saga, saga.start.version)
                if definition is not None and can_compensate(definition, state):
                    return saga
        return None

    def told(self, saga_id: UUID, events: Sequence[SagaEvent]) -> None:
        """The relay: commands that events bring with them are published."""
        first = self.database.sagas[saga_id].sequence - len(events)
        if any(isinstance(event, StepStarted) for event in events):
            self._alone(self.database.sagas[saga_id])
        for number, event in enumerate(events, first):
            self.notes[event.type] += 1
            self.notes["unknown resolved as applied"] += "adopted" in getattr(event, "result", ())
            follow: FollowUp | None = getattr(event, "follow_up", None)
            known = self.registry.by_command.keys() | STEERING
            if follow is not None and follow.type in known:
                self.notes[f"follow-up {follow.type}"] += 1
                command = Command(f"{saga_id}:{number}", follow.type, dict(follow.data))
                self.loop.call_later(0.05, self._relay, command)

    def _alone(self, saga: Status) -> None:
        """Whoever begins a step is the only one at work that has its business key."""
        wants = as_open(saga).wants
        for one in self.database.sagas.values():
            if one is saga or not one.open or as_open(one).wants != wants or one.state is None:
                continue
            if saga.row.status == "running" and one.state.steps:
                self.broken.append(
                    f"{saga.start.saga} begins a step while {one.start.saga}, which has the same "
                    f"business key, is {one.row.status} at step {one.row.step}"
                )

    def _relay(self, command: Command) -> None:
        if self.awake():
            self.publish(command)
        else:
            self.loop.call_later(1.0, self._relay, command)

    # --- looking after what nobody drives ----------------------------------------------------

    def _due_at(self, saga: Status) -> float | None:
        """When the sweep of a worker that doesn't drive it would take this saga."""
        if isinstance(saga.start, SagaRejected) or saga.row.status not in (
            "running",
            "compensating",
        ):
            return None
        if saga.owner is None:
            if self.database.turn_has_come(saga):
                return self.loop.now
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
                taken = {saga.saga_id: _taken(saga)}
                saga.owner, saga.next_at = takers[0].name, self.loop.now + 60.0
                history = {saga.saga_id: [*self.database.events[saga.saga_id]]}
                takers[0].runs(takers[0].engine.bind_lease)
                takers[0].runs(takers[0].engine.take_over, history, self.database.now(), taken)


def _taken(saga: Status) -> ClaimedRow:
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
