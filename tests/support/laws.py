"""What must hold of every history, written down a second time and without the decider.

A ``Chronicle`` reads a saga's events one by one and raises ``LawBroken`` at the first that the
rules do not allow. It is the saga's grammar (S2) with a memory: it knows which effects took
place or may have (S13), how often each step was tried (S7), and whether the saga may still end
(S4). It shares no code with ``evosaga.orchestrator.engine.decider``, so that both would have to be
wrong in the same way. It reads real histories as well::

    chronicle(CREATE_INTEGRATION, [recorded.event for recorded in history])
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, assert_never

from evosaga.events.model import (
    CompensationBegan,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Direction,
    SagaCancelRequested,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    SagaRejected,
    SagaResumed,
    SagaStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from evosaga.sagas.definition import Kind, Saga, Step

Phase: TypeAlias = Literal[
    "nothing", "running", "compensating", "parked", "completed", "compensated", "rejected"
]
Last: TypeAlias = Literal["held", "unknown", "rejected"]

MAY_BE_LOST = 3
"""So many times a step's own attempts may end with their workers before it is given up on."""


class LawBroken(AssertionError):
    """A history that must not exist."""


class Chronicle(NamedTuple):
    """What has happened to a saga, as far as the laws care. Hashable.

    A named tuple, since every event makes a new one, and walks tell hundreds of thousands.
    """

    phase: Phase = "nothing"
    turned: bool = False
    cancelled: bool = False
    late: bool = False
    """Whether it was the saga's own deadline that asked for the cancel first."""
    done: frozenset[str] = frozenset()
    doubtful: frozenset[str] = frozenset()
    """Steps that may have had their effect without ever having said so."""
    to_undo: tuple[str, ...] = ()
    flight: tuple[str, Direction, int] | None = None
    due: str | None = None
    """The step whose newest attempt failed; ``tries``, ``lost`` and ``last`` are about it."""
    tries: int = 0
    lost: int = 0
    """Of the tries those that ended with their worker: they burn none of the step's own."""
    last: Last | None = None
    begun: frozenset[str] = frozenset()
    """Steps that were ever tried."""

    def past(self, saga: Saga) -> bool:
        """Whether the point of no return is, or may be, behind the saga."""
        return any(
            (s.kind is Kind.PIVOT and s.name in self.done | self.doubtful)
            or (s.kind is Kind.RETRYABLE and s.name in self.begun)
            for s in saga.steps
        )

    def told(self, saga: Saga, event: SagaEvent) -> "Chronicle":
        """The chronicle with one more event. Raises ``LawBroken``."""
        match event:
            case SagaStarted():
                self._law(event, self.phase == "nothing", "a saga begins once")
                return self._replace(phase="running")
            case SagaRejected():
                self._law(event, self.phase == "nothing", "only a new saga is rejected")
                return self._replace(phase="rejected")
            case StepStarted() | CompensationStarted():
                return self._started(saga, event)
            case StepSucceeded() | StepFailed() | CompensationSucceeded() | CompensationFailed():
                return self._ended(event)
            case CompensationBegan():
                return self._turned(saga, event)
            case SagaCompleted():
                self._at_rest(event, "running")
                every = {s.name for s in saga.steps}
                self._law(event, self.done == every, "completed means that every step is done")
                return self._replace(phase="completed")
            case SagaCompensated():
                self._at_rest(event, "compensating")
                self._law(event, not self.to_undo, "compensated means that nothing is left")
                return self._replace(phase="compensated")
            case SagaFailed():
                return self._parked(saga, event)
            case SagaResumed():
                self._law(event, self.phase == "parked", "only a parked saga is resumed")
                return self._redone(event)
            case SagaCancelRequested():
                fits = self.phase in ("running", "compensating", "parked")
                self._law(event, fits, "a saga that is over can't be cancelled")
                late = self.late or (event.by == "deadline" and not self.cancelled)
                if event.by == "deadline":
                    self._at_rest(event, "running")
                    self._law(event, not self.cancelled, "one cancel is enough")
                    self._law(event, not self.past(saga), "too late for a deadline")
                return self._reopened()._replace(cancelled=True, late=late)
            case never:
                assert_never(never)

    def _started(self, saga: Saga, event: StepStarted | CompensationStarted) -> "Chronicle":
        forward = isinstance(event, StepStarted)
        self._at_rest(event, "running" if forward else "compensating")
        if forward:
            self._law(event, not self.turned, "never forward after compensation.began")
            fits = not self.cancelled or self.past(saga)
            self._law(event, fits, "a cancelled saga begins nothing new")
            due: str | None = next((s.name for s in saga.steps if s.name not in self.done), None)
        else:
            due = next(iter(self.to_undo), None)
        self._law(event, event.step == due, f"it is the turn of {due}")
        again = self.due == event.step
        number = self.tries + (self.last != "held") if again else 1
        self._law(event, event.attempt == max(1, number), f"attempt {number} is next")
        limit = saga.step(event.step).retry.attempts
        lost = self.lost if again else 0
        self._law(event, event.attempt - lost <= limit, f"{limit} attempts are allowed")
        self._law(event, lost < MAY_BE_LOST * limit, f"{lost} workers are enough")
        if forward and again:
            self._law(event, self.last != "rejected", "a rejected step is not tried again")
        return self._replace(
            flight=(event.step, "forward" if forward else "compensation", event.attempt),
            begun=self.begun | {event.step} if forward else self.begun,
        )

    def _ended(
        self, event: StepSucceeded | StepFailed | CompensationSucceeded | CompensationFailed
    ) -> "Chronicle":
        forward = isinstance(event, StepSucceeded | StepFailed)
        mine = (event.step, "forward" if forward else "compensation", event.attempt)
        self._law(event, self.flight == mine, f"in flight is {self.flight}")
        landed = self._replace(flight=None)
        if isinstance(event, StepFailed | CompensationFailed):
            doubt = isinstance(event, StepFailed) and (event.in_doubt or event.outcome == "unknown")
            self._law(event, not event.lost or event.outcome == "unknown", "lost is unknown")
            before = self.lost if self.due == event.step else 0
            return landed._replace(
                due=event.step,
                tries=event.attempt,
                lost=before + bool(event.lost),
                last=event.outcome,
                doubtful=self.doubtful | {event.step} if doubt else self.doubtful,
            )
        landed = landed._replace(due=None, tries=0, lost=0, last=None)
        if forward:
            return landed._replace(
                done=self.done | {event.step}, doubtful=self.doubtful - {event.step}
            )
        return landed._replace(to_undo=self.to_undo[1:])

    def _turned(self, saga: Saga, event: CompensationBegan) -> "Chronicle":
        self._at_rest(event, "running")
        self._law(event, not self.past(saga), "no way back after the point of no return")
        if event.because in ("cancelled", "deadline"):
            self._law(event, self.cancelled, "nobody asked for a cancel")
            expected = "deadline" if self.late else "cancelled"
            self._law(event, event.because == expected, f"it was {expected}")
        else:
            step = self._failed_step(saga, event)
            self._law(event, step.kind is not Kind.RETRYABLE, "a retryable step can't turn it")
            self._law(event, step.name == event.step, f"the step that failed is {step.name}")
        touched = tuple(
            s.name
            for s in reversed(saga.steps)
            if s.kind is Kind.COMPENSATABLE and s.name in self.done | self.doubtful
        )
        self._law(event, event.steps == touched, f"what has to be undone is {touched}")
        return self._replace(
            phase="compensating",
            turned=True,
            to_undo=touched,
            due=None,
            tries=0,
            lost=0,
            last=None,
        )

    def _parked(self, saga: Saga, event: SagaFailed) -> "Chronicle":
        self._at_rest(event, "compensating" if self.turned else "running")
        step = self._failed_step(saga, event)
        expected = (step.name, "compensation" if self.turned else "forward")
        self._law(event, (event.step, event.direction) == expected, f"stuck is {expected}")
        if not self.turned:
            fits = step.kind is not Kind.COMPENSATABLE or self.past(saga)
            self._law(event, fits, "what can be undone is undone, not parked")
            if step.kind is Kind.PIVOT:
                fits = step.name in self.doubtful
                self._law(event, fits, "a pivot that surely did nothing turns the saga")
        return self._replace(phase="parked")

    def _failed_step(self, saga: Saga, event: SagaEvent) -> Step:
        """The step whose failure is final, as the saga gives up on it."""
        self._law(event, self.due is not None, "no step has failed")
        assert self.due is not None
        step = saga.step(self.due)
        own, limit = self.tries - self.lost, step.retry.attempts
        used_up = own >= limit or self.lost >= MAY_BE_LOST * limit
        final = (self.last == "rejected" and not self.turned) or (self.last != "held" and used_up)
        self._law(event, final, f"{step.name} has attempts left")
        return step

    def _redone(self, event: SagaResumed) -> "Chronicle":
        """What a look found gone is no longer done, and may be there again."""
        gone = frozenset(event.redo or ())
        self._law(event, gone <= self.done, "only what was done is done again")
        self._law(event, not (gone and self.turned), "a saga on its way back does nothing again")
        again = self._replace(done=self.done - gone, doubtful=self.doubtful | gone)
        return again._reopened()

    def _reopened(self) -> "Chronicle":
        if self.phase != "parked":
            return self
        phase: Phase = "compensating" if self.turned else "running"
        return self._replace(phase=phase, due=None, tries=0, lost=0, last=None)

    def _at_rest(self, event: SagaEvent, phase: Phase) -> None:
        self._law(event, self.flight is None, f"an attempt is out: {self.flight}")
        self._law(event, self.phase == phase, f"the saga is {self.phase}")

    def _law(self, event: SagaEvent, holds: bool, sentence: str) -> None:
        if not holds:
            raise LawBroken(f"{event.type} {getattr(event, 'step', '') or ''}: {sentence} ({self})")


def chronicle(saga: Saga, history: Iterable[SagaEvent]) -> Chronicle:
    """Read a whole history. Raises ``LawBroken``."""
    found = Chronicle()
    for event in history:
        found = found.told(saga, event)
    return found
