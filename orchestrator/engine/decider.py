"""All decisions about a saga, in one pure place: no clock, no I/O, no async.

A saga's history is a list of events, and ``evosaga.orchestrator.engine.state`` folds it
into a ``State``. ``decide`` looks at a state and says the one thing to do next:

    Run      carry out an attempt of a step, forward or compensating, after a delay
    Record   append this decision to the history, then ask again
    Idle     nothing: the saga is over, parked, or an attempt is out

Running, recovery after a crash, replay and "why does it wait?" all ask ``decide``; there is no
second copy of these rules. Decisions are recorded and then obeyed, never derived again: once
``compensation.began`` is in the history no changed retry limit turns the saga round.

The rules, by the kind of the failed step:

    kind           step said rejected             attempts used up, outcome unknown
    compensatable  undo the steps before it       undo them and this one
    pivot          undo the steps before it,      park
                   but park when in doubt
    retryable      park                           park
    compensation   counts as a failed attempt     park

``held`` (the dependency is down, nothing was sent) waits and burns no attempt. An earlier attempt
whose outcome is unknown puts a compensatable step *in doubt*: whatever is said later, an undo
includes it.

When a step is tried again, and how often, is in ``evosaga.orchestrator.engine.retries``.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from evosaga.events.model import (
    CompensationBegan,
    CompensationFailed,
    CompensationStarted,
    Direction,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    SagaStarted,
    StepFailed,
    StepStarted,
)
from evosaga.orchestrator.engine.results import BAD_RESULT, BadResult, result_of
from evosaga.orchestrator.engine.retries import WORKER_LOST, backoff, hold_delay, used_up
from evosaga.orchestrator.engine.state import IllegalTransition, State, evolve
from evosaga.sagas.definition import Effect, InCommit, Kind, Saga, Step


@dataclass(frozen=True, slots=True)
class Run:
    """Carry out one attempt, ``delay`` seconds after the last recorded event."""

    step: Step
    direction: Direction
    attempt: int
    delay: float = 0.0

    @property
    def effect(self) -> Effect | InCommit:
        """What has to be called."""
        effect = self.step.do if self.direction == "forward" else self.step.undo
        assert effect is not None, "only compensatable steps are compensated"
        return effect


@dataclass(frozen=True, slots=True)
class Record:
    event: SagaEvent


@dataclass(frozen=True, slots=True)
class Idle:
    why: Literal["over", "parked", "in flight"]


NextAction: TypeAlias = Run | Record | Idle


def decide(saga: Saga, state: State) -> NextAction:
    """The next thing to do for a saga in this state.

    Raises ``IllegalTransition`` for a state without a beginning.
    """
    match state.status:
        case None:
            raise IllegalTransition("a saga without a saga.started has nothing to decide")
        case "completed" | "compensated" | "rejected":
            return Idle("over")
        case "failed":
            return Idle("parked")
        case "running" | "compensating":
            pass
        case never:
            assert_never(never)
    if state.in_flight is not None:
        return Idle("in flight")
    if state.direction == "compensation":
        return _decide_backward(saga, state)
    if state.cancel_requested and can_compensate(saga, state):
        if state.deadline_exceeded:
            return Record(
                _begin_compensation(
                    saga, state, "deadline", None, "deadline_exceeded", _late(state)
                )
            )
        return Record(
            _begin_compensation(
                saga, state, "cancelled", None, "cancelled", "a cancel was requested"
            )
        )
    return _decide_forward(saga, state)


def advance(saga: Saga, state: State) -> tuple[list[SagaEvent], State, Run | Idle]:
    """Record decisions until something has to be done or nothing is left to do."""
    events: list[SagaEvent] = []
    while True:
        match decide(saga, state):
            case Record(event):
                events.append(event)
                state = evolve(state, event)
            case Run() | Idle() as action:
                return events, state, action


def can_compensate(saga: Saga, state: State) -> bool:
    """Whether the saga may still be rolled back: nothing past the point of no return has begun."""
    for step in saga.steps:
        if step.kind is Kind.PIVOT:
            progress = state.progress(step.name)
            if progress.done or progress.in_doubt:
                return False
        # Begun once is begun for ever: a replay gives fresh attempts, but takes nothing back.
        if step.kind is Kind.RETRYABLE and step.name in state.steps:
            return False
    return True


def deadline_seconds(saga: Saga, state: State) -> float | None:
    """Seconds after its start at which the saga turns round by itself; None: it never will.

    No clock is read here. The caller has one, and asks for a cancel in the name of ``DEADLINE``.
    """
    start = state.start
    if not isinstance(start, SagaStarted) or start.deadline_seconds is None:
        return None
    forward = state.status == "running" and state.direction == "forward"
    if not forward or state.cancel_requested or not can_compensate(saga, state):
        return None
    if all(state.progress(step.name).done for step in saga.steps):
        return None
    return start.deadline_seconds


def intent(run: Run, worker: str, lease_seconds: float) -> StepStarted | CompensationStarted:
    """The event that must be committed before ``run`` is carried out."""
    make = StepStarted if run.direction == "forward" else CompensationStarted
    return make(step=run.step.name, attempt=run.attempt, worker=worker, lease_seconds=lease_seconds)


def attempt_lost(state: State) -> StepFailed | CompensationFailed:
    """The outcome of an attempt whose worker is gone. Raises when no attempt is out."""
    flight = state.in_flight
    if flight is None:
        raise IllegalTransition("no attempt is in flight, so none can be lost")
    make = StepFailed if flight.direction == "forward" else CompensationFailed
    return make(
        step=flight.step,
        attempt=flight.attempt,
        outcome="unknown",
        code=WORKER_LOST,
        message=f"worker {flight.worker} stopped before it said how this ended",
        lost=True,
    )


def attempt_not_started(state: State) -> StepFailed | CompensationFailed:
    """The outcome of an attempt that its worker never began, being unsure of its lease.

    Raises when no attempt is out.
    """
    flight = state.in_flight
    if flight is None:
        raise IllegalTransition("no attempt is in flight, so none can be kept back")
    make = StepFailed if flight.direction == "forward" else CompensationFailed
    return make(
        step=flight.step,
        attempt=flight.attempt,
        outcome="held",
        code="lease_lost",
        message=f"worker {flight.worker} was out of touch for too long, so it did not begin",
    )


def held_again(saga: Saga, state: State, fact: SagaEvent | None) -> State | None:
    """The state after an attempt that was held like the one before it; None: it was not.

    Nothing has changed then but when the step is tried again, so no event is needed: the
    claim that is out serves the next try as well.
    """
    before = state.failure
    if not isinstance(fact, StepFailed | CompensationFailed) or fact.outcome != "held":
        return None
    if type(before) is not type(fact) or before.step != fact.step or before.outcome != "held":
        return None
    if getattr(fact, "in_doubt", False) and not state.progress(fact.step).in_doubt:
        return None
    after = evolve(state, fact)
    return after if isinstance(decide(saga, after), Run) else None


def _decide_forward(saga: Saga, state: State) -> NextAction:
    due = next((s for s in saga.steps if not state.progress(s.name).done), None)
    if due is None:
        return Record(_ending(saga, state))
    progress, failure = state.progress(due.name), state.failure
    if failure is None:
        return Run(due, "forward", progress.attempts + 1)
    if failure.outcome == "held":
        return Run(due, "forward", max(progress.attempts, 1), hold_delay(state, failure))
    if failure.outcome == "unknown" and not used_up(progress, due, "forward"):
        return Run(due, "forward", progress.attempts + 1, backoff(state, due, failure))
    may_turn = due.kind is Kind.COMPENSATABLE or (
        due.kind is Kind.PIVOT and failure.outcome == "rejected" and not progress.in_doubt
    )
    # A replay may do a step again when the point of no return is long past: then it can only park.
    if may_turn and can_compensate(saga, state):
        return Record(
            _begin_compensation(saga, state, "step_failed", due.name, failure.code, failure.message)
        )
    return Record(_park(due, "forward", failure))


def _ending(saga: Saga, state: State) -> SagaCompleted | SagaFailed:
    """All is done: completed, unless what the steps gave is not what the definition promises."""
    try:
        result_of(saga, state)
    except BadResult as error:
        last = saga.steps[-1].name
        return SagaFailed(step=last, direction="forward", code=BAD_RESULT, message=str(error)[:500])
    return SagaCompleted()


def _decide_backward(saga: Saga, state: State) -> NextAction:
    if not state.to_compensate:
        assert state.compensation is not None
        return Record(
            SagaCompensated(code=state.compensation.code, message=state.compensation.message)
        )
    due = saga.step(state.to_compensate[0])
    progress, failure = state.progress(due.name), state.failure
    attempts = progress.undo_attempts
    if failure is None:
        return Run(due, "compensation", attempts + 1)
    if failure.outcome == "held":
        return Run(due, "compensation", max(attempts, 1), hold_delay(state, failure))
    if not used_up(progress, due, "compensation"):
        return Run(due, "compensation", attempts + 1, backoff(state, due, failure))
    return Record(_park(due, "compensation", failure))


def _begin_compensation(
    saga: Saga,
    state: State,
    because: Literal["step_failed", "cancelled", "deadline"],
    step: str | None,
    code: str,
    message: str,
) -> CompensationBegan:
    """Undo, last first, every compensatable step that was done or may have been."""
    touched = [s.name for s in saga.steps if s.kind is Kind.COMPENSATABLE and _touched(state, s)]
    return CompensationBegan(
        because=because, step=step, code=code, message=message, steps=tuple(reversed(touched))
    )


def _late(state: State) -> str:
    seconds = state.start.deadline_seconds if isinstance(state.start, SagaStarted) else None
    return f"it was not done within {seconds or 0:g} s, which is its deadline"


def _touched(state: State, step: Step) -> bool:
    progress = state.progress(step.name)
    return progress.done or progress.in_doubt


def _park(step: Step, direction: Direction, failure: StepFailed | CompensationFailed) -> SagaFailed:
    return SagaFailed(
        step=step.name, direction=direction, code=failure.code, message=failure.message
    )
