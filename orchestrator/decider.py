"""Every decision about a saga, in one pure place: no clock, no I/O, no async.

The theory. A saga's history is a list of events. ``evolve`` folds one event into a ``State``;
``decide`` looks at a state and says the one thing to do next:

    Run      carry out an attempt of a step, forward or compensating, after a delay
    Record   append this decision to the history, then ask again
    Rest     nothing: the saga is over, parked, or an attempt is out

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

An attempt lost with its worker leaves the step in doubt as well, but mostly says nothing against
it: its worker was killed, paused, or had more to do than it could bear. So losses are counted
apart. The first is made good at once, the next after growing pauses, and only when a step has
lost ``LOSSES`` times as many attempts as it has is it given up on: it may be what kills them.

An event that doesn't fit the state raises ``IllegalTransition``, and nothing changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, assert_never

from events.model import (
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
from sagas.definition import Effect, InCommit, Kind, Saga, Step

Status: TypeAlias = Literal[
    "running", "compensating", "completed", "compensated", "failed", "rejected"
]
OPEN: Final[frozenset[Status]] = frozenset({"running", "compensating", "failed"})
"""The statuses that hold a business key."""

DEADLINE: Final = "deadline"
"""Who asks for the cancel when a saga's own time is up."""

WORKER_LOST: Final = "worker_lost"
"""Failure code of an attempt whose worker vanished."""

LOSSES: Final = 3
"""A step may lose so many times its own attempts with their workers."""

_HOLD_FIRST, _HOLD_CAP = 0.5, 30.0


class IllegalTransition(Exception):
    """An event does not fit the state it was applied to.

    The history is written by this product alone, so this is our fault: a bug, or a log that was
    changed by hand.
    """


class Progress(NamedTuple):
    """How far one step is. ``attempts`` count since the start or the last replay.

    ``lost``: so many of them ended with their worker, and are not held against the step.
    """

    attempts: int = 0
    in_doubt: bool = False
    result: Mapping[str, Any] | None = None
    undo_attempts: int = 0
    undo_in_doubt: bool = False
    undone: bool = False
    lost: int = 0
    undo_lost: int = 0

    @property
    def done(self) -> bool:
        return self.result is not None

    def counted(self, direction: Direction) -> tuple[int, int]:
        """The attempts that count as the step's own, and those that were lost."""
        if direction == "forward":
            return self.attempts - self.lost, self.lost
        return self.undo_attempts - self.undo_lost, self.undo_lost

    def used_up(self, step: Step, direction: Direction) -> bool:
        """Whether the step may not be tried again without a person's word."""
        own, lost = self.counted(direction)
        return own >= step.retry.attempts or lost >= LOSSES * step.retry.attempts


_UNTOUCHED: Final = Progress()


class InFlight(NamedTuple):
    step: str
    direction: Direction
    attempt: int
    worker: str


class State(NamedTuple):
    """What a history amounts to. ``sequence`` is where the next event goes.

    A named tuple, since every event makes a new one: copying a dataclass takes six times as long.
    """

    sequence: int = 0
    status: Status | None = None
    start: SagaStarted | SagaRejected | None = None
    direction: Direction = "forward"
    steps: Mapping[str, Progress] = MappingProxyType({})
    undoing: tuple[str, ...] = ()
    in_flight: InFlight | None = None
    failure: StepFailed | CompensationFailed | None = None
    """The newest failed attempt of the step that is due; None after a success."""
    holds: int = 0
    """How often in a row the due step was held."""
    cancel_requested: bool = False
    out_of_time: bool = False
    """Whether its own deadline was the first to ask for the cancel."""
    turned: CompensationBegan | None = None
    parked: SagaFailed | None = None
    runs: int = 1
    """1, and one more for every replay."""

    def progress(self, step: str) -> Progress:
        return self.steps.get(step, _UNTOUCHED)


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
class Rest:
    why: Literal["over", "parked", "in flight"]


NextAction: TypeAlias = Run | Record | Rest


# --- decide -----------------------------------------------------------------------------------


def decide(saga: Saga, state: State) -> NextAction:
    """The next thing to do for a saga in this state.

    Raises ``IllegalTransition`` for a state without a beginning.
    """
    match state.status:
        case None:
            raise IllegalTransition("a saga without a saga.started has nothing to decide")
        case "completed" | "compensated" | "rejected":
            return Rest("over")
        case "failed":
            return Rest("parked")
        case "running" | "compensating":
            pass
        case never:
            assert_never(never)
    if state.in_flight is not None:
        return Rest("in flight")
    if state.direction == "compensation":
        return _decide_backward(saga, state)
    if state.cancel_requested and can_turn(saga, state):
        if state.out_of_time:
            return Record(_turn(saga, state, "deadline", None, "deadline_exceeded", _late(state)))
        return Record(_turn(saga, state, "cancelled", None, "cancelled", "a cancel was requested"))
    return _decide_forward(saga, state)


def advance(saga: Saga, state: State) -> tuple[list[SagaEvent], State, Run | Rest]:
    """Record decisions until something has to be done or nothing is left to do."""
    events: list[SagaEvent] = []
    while True:
        match decide(saga, state):
            case Record(event):
                events.append(event)
                state = evolve(state, event)
            case Run() | Rest() as action:
                return events, state, action


def can_turn(saga: Saga, state: State) -> bool:
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


def expires(saga: Saga, state: State) -> float | None:
    """Seconds after its start at which the saga turns round by itself; None: it never will.

    No clock is read here. Whoever has one asks for a cancel in the name of ``DEADLINE``.
    """
    start = state.start
    if not isinstance(start, SagaStarted) or start.deadline_seconds is None:
        return None
    forward = state.status == "running" and state.direction == "forward"
    if not forward or state.cancel_requested or not can_turn(saga, state):
        return None
    if all(state.progress(step.name).done for step in saga.steps):
        return None
    return start.deadline_seconds


def intent(run: Run, worker: str, lease_seconds: float) -> StepStarted | CompensationStarted:
    """The event that must be committed before ``run`` is carried out."""
    make = StepStarted if run.direction == "forward" else CompensationStarted
    return make(step=run.step.name, attempt=run.attempt, worker=worker, lease_seconds=lease_seconds)


def lost(state: State) -> StepFailed | CompensationFailed:
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


def kept_back(state: State) -> StepFailed | CompensationFailed:
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


def _decide_forward(saga: Saga, state: State) -> NextAction:
    due = next((s for s in saga.steps if not state.progress(s.name).done), None)
    if due is None:
        return Record(SagaCompleted())
    progress, failure = state.progress(due.name), state.failure
    if failure is None:
        return Run(due, "forward", progress.attempts + 1)
    if failure.outcome == "held":
        return Run(due, "forward", max(progress.attempts, 1), _hold(state, failure))
    if failure.outcome == "unknown" and not progress.used_up(due, "forward"):
        return Run(due, "forward", progress.attempts + 1, _backoff(state, due, failure))
    may_turn = due.kind is Kind.COMPENSATABLE or (
        due.kind is Kind.PIVOT and failure.outcome == "rejected" and not progress.in_doubt
    )
    # A replay may do a step again when the point of no return is long past: then it can only park.
    if may_turn and can_turn(saga, state):
        return Record(_turn(saga, state, "step_failed", due.name, failure.code, failure.message))
    return Record(_park(due, "forward", failure))


def _decide_backward(saga: Saga, state: State) -> NextAction:
    if not state.undoing:
        assert state.turned is not None
        return Record(SagaCompensated(code=state.turned.code, message=state.turned.message))
    due = saga.step(state.undoing[0])
    progress, failure = state.progress(due.name), state.failure
    attempts = progress.undo_attempts
    if failure is None:
        return Run(due, "compensation", attempts + 1)
    if failure.outcome == "held":
        return Run(due, "compensation", max(attempts, 1), _hold(state, failure))
    if not progress.used_up(due, "compensation"):
        return Run(due, "compensation", attempts + 1, _backoff(state, due, failure))
    return Record(_park(due, "compensation", failure))


def _turn(
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


def _backoff(state: State, step: Step, failure: StepFailed | CompensationFailed) -> float:
    own, lost = state.progress(step.name).counted(state.direction)
    if failure.code != WORKER_LOST:
        return _jitter(state, failure, step.retry.delay(own))
    return _jitter(state, failure, step.retry.delay(lost - 1)) if lost > 1 else 0.0


def _hold(state: State, failure: StepFailed | CompensationFailed) -> float:
    if failure.retry_after_seconds is not None:
        return failure.retry_after_seconds
    return _jitter(state, failure, min(_HOLD_CAP, _HOLD_FIRST * 2.0 ** min(state.holds - 1, 20)))


def _jitter(state: State, failure: StepFailed | CompensationFailed, delay: float) -> float:
    """Spread by a quarter either way: many sagas must not come back at the same moment.

    The spread is a hash of what is retried, so the same history always gives the same time.
    """
    assert state.start is not None
    seed = f"{state.start.command_id}/{failure.step}/{failure.attempt}/{state.holds}"
    share = int.from_bytes(blake2b(seed.encode(), digest_size=4).digest()) / 2**32
    return round(delay * (0.75 + 0.5 * share), 3)


# --- evolve -----------------------------------------------------------------------------------


def replay(history: Iterable[SagaEvent]) -> State:
    """The state a whole history amounts to."""
    state = State()
    for event in history:
        state = evolve(state, event)
    return state


def evolve(state: State, event: SagaEvent) -> State:
    """The state after one more event. Raises ``IllegalTransition`` when it doesn't fit."""
    match event:
        case SagaStarted():
            _demand(state.status is None, event, "the saga has begun already")
            new = state._replace(status="running", start=event)
        case SagaRejected():
            _demand(state.status is None, event, "the saga has begun already")
            new = state._replace(status="rejected", start=event)
        case StepStarted() | CompensationStarted():
            new = _evolve_started(state, event)
        case StepSucceeded() | CompensationSucceeded():
            new = _evolve_succeeded(state, event)
        case StepFailed() | CompensationFailed():
            new = _evolve_failed(state, event)
        case CompensationBegan():
            _demand(state.status == "running" and not state.in_flight, event, "it can't turn now")
            new = state._replace(
                status="compensating",
                direction="compensation",
                undoing=event.steps,
                turned=event,
                failure=None,
                holds=0,
            )
        case SagaCompleted():
            _demand(state.status == "running" and not state.in_flight, event, "it isn't running")
            new = state._replace(status="completed", failure=None)
        case SagaCompensated():
            _demand(
                state.status == "compensating" and not state.undoing, event, "work is left to undo"
            )
            new = state._replace(status="compensated", failure=None)
        case SagaFailed():
            _demand(
                state.status in ("running", "compensating") and not state.in_flight,
                event,
                "only a saga at rest can be parked",
            )
            new = state._replace(status="failed", parked=event)
        case SagaResumed():
            _demand(state.status == "failed", event, "only a parked saga is resumed")
            new = _redo(_unpark(state)._replace(runs=state.runs + 1), event)
        case SagaCancelRequested():
            _demand(state.status in OPEN, event, "the saga is over")
            late = state.out_of_time or (event.by == DEADLINE and not state.cancel_requested)
            new = _unpark(state)._replace(cancel_requested=True, out_of_time=late)
        case never:
            assert_never(never)
    return State(state.sequence + 1, *new[1:])  # what ``_replace`` does, at a quarter of its cost


def _evolve_started(state: State, event: StepStarted | CompensationStarted) -> State:
    direction: Direction = "forward" if isinstance(event, StepStarted) else "compensation"
    _demand(
        state.status in ("running", "compensating")
        and state.in_flight is None
        and state.direction == direction,
        event,
        "another attempt is out, or the saga goes the other way",
    )
    progress = state.progress(event.step)
    if direction == "forward":
        _demand(not progress.done, event, "the step is done already")
        progress = progress._replace(attempts=event.attempt)
    else:
        _demand(state.undoing[:1] == (event.step,), event, "it is not this step's turn")
        progress = progress._replace(undo_attempts=event.attempt)
    flight = InFlight(event.step, direction, event.attempt, event.worker)
    return state._replace(in_flight=flight, steps={**state.steps, event.step: progress})


def _evolve_succeeded(state: State, event: StepSucceeded | CompensationSucceeded) -> State:
    flight = _landing(state, event, "forward" if isinstance(event, StepSucceeded) else None)
    progress = state.progress(event.step)
    if flight.direction == "forward":
        progress = progress._replace(result=event.result, in_doubt=False)
        undoing = state.undoing
    else:
        progress = progress._replace(undone=True, in_doubt=False)
        undoing = state.undoing[1:]
    return state._replace(
        in_flight=None,
        failure=None,
        holds=0,
        undoing=undoing,
        steps={**state.steps, event.step: progress},
    )


def _evolve_failed(state: State, event: StepFailed | CompensationFailed) -> State:
    _landing(state, event, "forward" if isinstance(event, StepFailed) else None)
    progress = state.progress(event.step)
    if isinstance(event, StepFailed) and (event.outcome == "unknown" or event.in_doubt):
        progress = progress._replace(in_doubt=True)
    if isinstance(event, CompensationFailed) and event.outcome == "unknown":
        progress = progress._replace(undo_in_doubt=True)
    if event.lost and isinstance(event, StepFailed):
        progress = progress._replace(lost=progress.lost + 1)
    elif event.lost:
        progress = progress._replace(undo_lost=progress.undo_lost + 1)
    return state._replace(
        in_flight=None,
        failure=event,
        holds=state.holds + 1 if event.outcome == "held" else 0,
        steps={**state.steps, event.step: progress},
    )


def _landing(
    state: State,
    event: StepSucceeded | StepFailed | CompensationSucceeded | CompensationFailed,
    forward: Literal["forward"] | None,
) -> InFlight:
    """The attempt an outcome belongs to."""
    flight = state.in_flight
    if flight is None:
        raise IllegalTransition(f"{event.type} of {event.step!r}, but no attempt is in flight")
    direction = forward or "compensation"
    _demand(
        (flight.step, flight.direction, flight.attempt) == (event.step, direction, event.attempt),
        event,
        f"the attempt in flight is {flight.direction} {flight.step!r} number {flight.attempt}",
    )
    return flight


def _unpark(state: State) -> State:
    """A parked saga goes on where it stood, with fresh attempts; others are left as they are.

    The step that is due looks before it acts: meanwhile a person may have mended things.
    """
    if state.status != "failed" or state.parked is None:
        return state
    name = state.parked.step
    fresh = state.progress(name)._replace(attempts=0, undo_attempts=0, lost=0, undo_lost=0)
    if state.direction == "forward":
        fresh = fresh._replace(in_doubt=True)
    else:
        fresh = fresh._replace(undo_in_doubt=True)
    return state._replace(
        status="running" if state.direction == "forward" else "compensating",
        parked=None,
        failure=None,
        holds=0,
        steps={**state.steps, name: fresh},
    )


def _redo(state: State, event: SagaResumed) -> State:
    """Steps whose effect is gone are due again, and in doubt: their undo must include them."""
    gone = {name: Progress(in_doubt=True) for name in event.redo or ()}
    _demand(
        not gone or (state.direction == "forward" and all(state.progress(n).done for n in gone)),
        event,
        "only steps that were done can be done again",
    )
    return state._replace(steps={**state.steps, **gone})


def _demand(fits: bool, event: SagaEvent, otherwise: str) -> None:
    if not fits:
        raise IllegalTransition(f"{event.type} does not fit: {otherwise}")
