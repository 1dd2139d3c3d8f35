"""One run: a cluster in which whatever happens next is somebody's choice.

Whenever nothing can go on by itself, ``_idle`` takes the oldest call that is out and asks
``choose`` what becomes of it. The first option is always "ok", so a chooser that always takes the
first gives the run in which nothing goes wrong; and the n-th question of two runs that were
answered alike so far is the same. When no call is out, time moves to the next thing that is due.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from evosaga.orchestrator.commands.testing.cluster import Cluster
from evosaga.orchestrator.commands.testing.memory import Status
from evosaga.orchestrator.commands.testing.workers import Op
from evosaga.sagas.registry import SagaRegistry

WORKER: Final = ("crash", "crash late", "sleep before", "sleep after")
FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "accept": ("crash", "sleep after"),
    "append": (*WORKER, "doze", "cancel", "cancel elsewhere"),
    "join": ("refused", *WORKER, "cancel elsewhere"),
    "hold": (*WORKER, "doze", "cancel elsewhere"),
    "turn": ("crash", "sleep before", "sleep after", "cancel elsewhere"),
    "read": ("crash", "sleep before", "sleep after"),
    "time": ("cancel", "cancel elsewhere"),
}
"""What may become of a call, besides "ok".

    refused            an error, and nothing has happened
    lost, late         the answer gets lost; the effect is there, or comes much later
    crash              the worker dies: before it sends, after the effect, or before a late effect
    sleep              it stops, with the call still before it or the answer unread
    doze               it stops as well, until it doubts its lease, but nobody else does yet
    cancel             a person cancels first, by way of this worker or elsewhere

Where two of these are the same for all that anybody can see, one of them is left out.
"""

DOZE: Final = 2.4
"""Seconds after which a worker takes its lease for lost, and the others still do not."""
LATE: Final = 15.0
"""Seconds until a request that got lost on its way lands."""
INSTANT: Final = 0.0005
"""Seconds that a call takes at least: time never stands still."""
_LONGEST: Final = 1500


class Scene(Cluster):
    """A cluster with somebody who chooses: ``choose(kind, options)`` returns one of the options."""

    faults: Mapping[str, tuple[str, ...]] = FAULTS

    def __init__(
        self,
        registry: SagaRegistry,
        choose: Callable[[str, list[str]], str],
        *,
        workers: int = 2,
        fenced: bool = True,
    ) -> None:
        super().__init__(registry, workers=workers, fenced=fenced)
        self.choose = choose
        self.loop.idle = self._idle
        self.limbo: list[Op] = []
        """Requests whose senders know nothing of them any more, and that will land."""
        self.trace: list[str] = []
        self.calm = False
        """No more questions: everything goes well from here on."""

    def go_wrong(self, op: Op, how: str) -> None:
        """The caller gets an error, or worse."""
        self.pending.remove(op)
        op.future.set_exception(ValueError("the database refuses this row"))

    def landed(self, op: Op) -> None:
        """Called when a request is about to arrive that got lost on its way."""

    # --- what happens next -----------------------------------------------------------------------

    def ready(self) -> list[Op]:
        """The calls that are out and may be answered, oldest first."""
        self.pending = [op for op in self.pending if not (op.actor.dead or op.future.done())]
        return [op for op in self.pending if op.actor.awake]

    def _idle(self) -> bool:
        if len(self.trace) > _LONGEST:
            self.broken.append("it goes on for ever")
            return False
        if ready := self.ready():
            self.settle(ready[0], self._ask(ready[0].kind, ready))
            return True
        when = self.next_event()
        if when is None:
            return False
        if not self.calm and when > self.loop.now + 0.01 and (saga := self.turnable()):
            how = self._ask("time", [])
            if how != "ok":
                self._interfere(how, saga)
                return True
        self.pass_time(when)
        return True

    def next_event(self) -> float | None:
        """When something happens by itself."""
        times = (self.loop.next_timer(), self.next_due())
        return min((t for t in times if t is not None), default=None)

    def pass_time(self, until: float) -> None:
        self.loop.advance(until)
        self.sweep()

    def _ask(self, kind: str, ready: list[Op]) -> str:
        return "ok" if self.calm else self.choose(kind, self.options(kind, ready))

    def options(self, kind: str, ready: list[Op]) -> list[str]:
        """What may become of the first of these."""
        cancels = not self.notes["saga.cancel"] and self.turnable() is not None
        sleeps = len(self.awake()) > 1
        options = [
            how
            for how in ("ok", *self.faults[kind])
            if (cancels or not how.startswith("cancel"))
            and (sleeps or not how.startswith(("sleep", "doze")))
        ]
        if len({op.actor for op in ready}) > 1:
            options.append("other first")
        if self.limbo:
            options.append("land")
        if any(worker.asleep for worker in self.workers):
            options.append("wake")
        return options

    # --- and how it ends -------------------------------------------------------------------------

    def settle(self, op: Op, how: str) -> None:
        """Let a call come to this."""
        self.trace.append(f"{self.loop.now:9.3f} {op.actor.name} {op.kind} {op.about}: {how}")
        self.loop.advance(self.loop.now + INSTANT)
        if how != "ok":
            self.notes[how if how in ("other first", "land", "wake") else f"{op.kind}: {how}"] += 1
        match how:
            case "ok":
                self.carry_out(op)
            case "other first":
                mine = [o for o in self.pending if o.actor is op.actor]
                self.pending = [o for o in self.pending if o.actor is not op.actor] + mine
            case "cancel" | "cancel elsewhere" | "land" | "wake":
                self._interfere(how, self.turnable())
            case "crash before":
                self.crash(op.actor)
            case "crash":
                self.do(op)
                self.crash(op.actor)
            case "crash late":
                self.land_later(op)
                self.crash(op.actor)
            case "sleep before":
                self.sleep(op.actor, beat_first=False)
            case "sleep after":
                self.carry_out(op)
                self.sleep(op.actor, beat_first=True)
            case "doze":
                self.carry_out(op)
                self.sleep(op.actor, beat_first=False, seconds=DOZE)
            case _:
                self.go_wrong(op, how)

    def _interfere(self, how: str, saga: Status | None) -> None:
        """Something that has nothing to do with the call that is out."""
        match how:
            case "land":
                self.land(self.limbo[0])
            case "wake":
                self.wake(next(w for w in self.workers if w.asleep), beat_first=False)
            case _:
                assert saga is not None
                awake = self.awake()
                owner = next((w for w in awake if w.name == saga.owner), awake[0])
                others = [w for w in awake if w is not owner]
                self.notes[f"cancelled at {saga.row.step}"] += 1
                elsewhere = how == "cancel elsewhere" and others
                self.steer("saga.cancel", saga.saga_id, others[0] if elsewhere else owner)

    def carry_out(self, op: Op) -> None:
        """Let it happen, and tell its caller."""
        result = self.do(op)
        self.pending.remove(op)
        if isinstance(result, Exception):
            op.future.set_exception(result)
        else:
            op.future.set_result(result)

    def do(self, op: Op) -> Any:
        """Let it happen; what it gives, or the exception that it raises."""
        try:
            return op.do()
        except Exception as error:
            return error

    def land_later(self, op: Op) -> None:
        """It gets lost on its way, and arrives much later."""
        op.late = True
        self.limbo.append(op)
        self.loop.call_later(LATE, self.land, op)

    def land(self, op: Op) -> None:
        """A request arrives that got lost on its way."""
        if op in self.limbo:
            self.limbo.remove(op)
            self.notes["landed late"] += 1
            self.landed(op)
            self.do(op)
