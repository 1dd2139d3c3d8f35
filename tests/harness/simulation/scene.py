"""One run: a cluster in which whatever happens next is somebody's choice.

Whenever nothing can go on by itself, ``_idle`` takes the oldest call that is out and asks
``choose`` what becomes of it. The first option is always "ok", so a chooser that always takes the
first gives the run in which nothing goes wrong; and the n-th question of two runs that were
answered alike so far is the same. When no call is out, time moves to the next thing that is due.
"""

from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.sagas.whatsapp.evolution.answers import UNREACHABLE, Answer
from tests.harness.simulation.cluster import Cluster
from tests.harness.simulation.database import Status
from tests.harness.simulation.outside import answer, refusal
from tests.harness.simulation.workers import Op

_WORKER: Final = ("crash", "crash late", "sleep before", "sleep after")
_HTTP: Final = (
    "refused",
    "500",
    "400",
    "lost",
    "late",
    "lie",
    "crash before",
    *_WORKER,
    "doze",
    "cancel",
)
FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "accept": ("crash", "sleep after"),
    "append": (*_WORKER, "doze", "cancel", "cancel elsewhere"),
    "join": ("refused", *_WORKER, "cancel elsewhere"),
    "hold": (*_WORKER, "doze", "cancel elsewhere"),
    "read": ("crash", "sleep before", "sleep after"),
    "look": ("refused", "500", "sleep before", "sleep after", "cancel"),
    "create": _HTTP,
    "delete": _HTTP,
    "redis": ("refused", "lost", "crash", "sleep before", "sleep after", "cancel"),
    "time": ("cancel", "cancel elsewhere"),
}
"""What may become of a call, besides "ok".

    refused, 500       an error, and nothing has happened
    400                of a create: it happened, and is cleaned up by name a while later
    lost, late         the answer gets lost; the effect is there, or comes much later
    lie                a success is answered that never happened
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

    def __init__(
        self,
        choose: Callable[[str, list[str]], str],
        *,
        workers: int = 2,
        fenced: bool = True,
        deadline: float | None = None,
    ) -> None:
        super().__init__(workers=workers, fenced=fenced, deadline=deadline)
        self.choose = choose
        self.loop.idle = self._idle
        self.limbo: list[Op] = []
        """Requests whose senders know nothing of them any more, and that will land."""
        self.trace: list[str] = []
        self.calm = False
        """No more questions: everything goes well from here on."""

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
            for how in ("ok", *FAULTS[kind])
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
                self._carry_out(op)
            case "other first":
                mine = [o for o in self.pending if o.actor is op.actor]
                self.pending = [o for o in self.pending if o.actor is not op.actor] + mine
            case "cancel" | "cancel elsewhere" | "land" | "wake":
                self._interfere(how, self.turnable())
            case "crash before":
                self.crash(op.actor)
            case "crash":
                self._do(op)
                self.crash(op.actor)
            case "crash late":
                self._land_later(op)
                self.crash(op.actor)
            case "sleep before":
                self.sleep(op.actor, beat_first=False)
            case "sleep after":
                self._carry_out(op)
                self.sleep(op.actor, beat_first=True)
            case "doze":
                self._carry_out(op)
                self.sleep(op.actor, beat_first=False, seconds=DOZE)
            case _:
                self._go_wrong(op, how)

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

    def _carry_out(self, op: Op) -> None:
        result = self._do(op)
        self.pending.remove(op)
        if isinstance(result, Exception):
            op.future.set_exception(result)
        else:
            op.future.set_result(result)

    def _do(self, op: Op) -> Any:
        try:
            return op.do()
        except Exception as error:
            return error

    def _go_wrong(self, op: Op, how: str) -> None:
        """The caller gets an error, or worse."""
        self.pending.remove(op)
        if op.kind == "join":
            op.future.set_exception(ValueError("the database refuses this row"))
        elif op.kind == "redis":
            if how == "lost":
                self._do(op)
            lost = RedisTimeoutError("lost") if how == "lost" else RedisConnectionError("refused")
            op.future.set_exception(lost)
        else:
            op.future.set_result(self._wrong_answer(op, how))

    def _wrong_answer(self, op: Op, how: str) -> Answer:
        match how:
            case "refused":
                return Answer(0, None, "refused", sent=False, code=UNREACHABLE)
            case "500":
                return refusal(500, ["an error"])
            case "lie":
                body = {"instance": {"instanceName": op.about}, "status": "SUCCESS"}
                return answer(201 if op.kind == "create" else 200, body)
            case "400":
                if op.kind == "create":
                    made: Answer = self._do(op)
                    if made.status != 201:  # a guard refused it before there was anything
                        return made
                    self.evolution.clean_up(op.about)
                return refusal(400, ["[object Object]"])
            case "lost":
                self._do(op)
            case "late":
                self._land_later(op)
        return Answer(0, None, "ReadError")

    def _land_later(self, op: Op) -> None:
        op.late = True
        self.limbo.append(op)
        self.loop.call_later(LATE, self.land, op)

    def land(self, op: Op) -> None:
        """A request arrives that got lost on its way."""
        if op in self.limbo:
            self.limbo.remove(op)
            self.notes["landed late"] += 1
            over = [s for s in self.database.sagas.values() if s.row.status == "compensated"]
            if op.kind == "create" and any(s.start.instance_name == op.about for s in over):
                self.notes["landed after it was compensated"] += 1
            self._do(op)
