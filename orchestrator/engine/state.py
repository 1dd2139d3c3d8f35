"""What a history amounts to: ``evolve`` folds one event into a ``State``, and nothing else does.

Pure: no clock, no I/O, no async. An event that doesn't fit the state raises ``IllegalTransition``,
and nothing changes. What to do in a state is for ``evosaga.orchestrator.engine.decider`` to say.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, assert_never

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

Status: TypeAlias = Literal[
    "running", "compensating", "completed", "compensated", "failed", "rejected"
]
OPEN: Final[frozenset[Status]] = frozenset({"running", "compensating", "failed"})
"""The statuses that hold a business key."""


DEADLINE: Final = "deadline"
"""Who asks for the cancel when a saga's own time is up."""


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
    to_compensate: tuple[str, ...] = ()
    in_flight: InFlight | None = None
    failure: StepFailed | CompensationFailed | None = None
    """The newest failed attempt of the step that is due; None after a success."""
    holds: int = 0
    """How often in a row the due step was held."""
    cancel_requested: bool = False
    deadline_exceeded: bool = False
    """Whether its own deadline was the first to ask for the cancel."""
    compensation: CompensationBegan | None = None
    parked: SagaFailed | None = None
    runs: int = 1
    """1, and one more for every replay."""

    def progress(self, step: str) -> Progress:
        return self.steps.get(step, _UNTOUCHED)


def replay(history: Iterable[SagaEvent]) -> State:
    """The state a whole history amounts to."""
    state = State()
    for event in history:
        state = evolve(state, event)
    return state


def evolve(state: State, event: SagaEvent) -> State:
    """The state after one more event. Raises ``IllegalTransition`` when it doesn't fit."""
    after = state.sequence + 1
    match event:  # what happens most comes first
        case StepStarted() | CompensationStarted():
            return _evolve_started(state, event)
        case StepSucceeded() | CompensationSucceeded():
            return _evolve_succeeded(state, event)
        case StepFailed() | CompensationFailed():
            return _evolve_failed(state, event)
        case SagaStarted():
            _demand(state.status is None, event, "the saga has begun already")
            return state._replace(sequence=after, status="running", start=event)
        case SagaRejected():
            _demand(state.status is None, event, "the saga has begun already")
            return state._replace(sequence=after, status="rejected", start=event)
        case CompensationBegan():
            _demand(state.status == "running" and not state.in_flight, event, "it can't turn now")
            return state._replace(
                sequence=after,
                status="compensating",
                direction="compensation",
                to_compensate=event.steps,
                compensation=event,
                failure=None,
                holds=0,
            )
        case SagaCompleted():
            _demand(state.status == "running" and not state.in_flight, event, "it isn't running")
            return state._replace(sequence=after, status="completed", failure=None)
        case SagaCompensated():
            _demand(
                state.status == "compensating" and not state.to_compensate,
                event,
                "work is left to undo",
            )
            return state._replace(sequence=after, status="compensated", failure=None)
        case SagaFailed():
            _demand(
                state.status in ("running", "compensating") and not state.in_flight,
                event,
                "only a saga at rest can be parked",
            )
            return state._replace(sequence=after, status="failed", parked=event)
        case SagaResumed():
            _demand(state.status == "failed", event, "only a parked saga is resumed")
            return _redo(_unpark(state)._replace(sequence=after, runs=state.runs + 1), event)
        case SagaCancelRequested():
            _demand(state.status in OPEN, event, "the saga is over")
            late = state.deadline_exceeded or (event.by == DEADLINE and not state.cancel_requested)
            return _unpark(state)._replace(
                sequence=after, cancel_requested=True, deadline_exceeded=late
            )
        case never:
            assert_never(never)


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
        progress = Progress(event.attempt, *progress[1:])  # ``_replace``, in a third of its time
    else:
        _demand(state.to_compensate[:1] == (event.step,), event, "it is not this step's turn")
        progress = progress._replace(undo_attempts=event.attempt)
    flight = InFlight(event.step, direction, event.attempt, event.worker)
    steps = {**state.steps, event.step: progress}
    return state._replace(sequence=state.sequence + 1, in_flight=flight, steps=steps)


def _evolve_succeeded(state: State, event: StepSucceeded | CompensationSucceeded) -> State:
    flight = _landing(state, event, "forward" if isinstance(event, StepSucceeded) else None)
    progress = state.progress(event.step)
    if flight.direction == "forward":
        progress = progress._replace(result=event.result, in_doubt=False)
        to_compensate = state.to_compensate
    else:
        progress = progress._replace(undone=True, in_doubt=False)
        to_compensate = state.to_compensate[1:]
    return state._replace(
        sequence=state.sequence + 1,
        in_flight=None,
        failure=None,
        holds=0,
        to_compensate=to_compensate,
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
        sequence=state.sequence + 1,
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
