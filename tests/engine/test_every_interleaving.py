"""Every way the two real sagas can go, and sagas of every shape.

A breadth-first search over states: at every attempt in flight each outcome is possible, a worker
may die, and at any moment a person may cancel or replay, or the saga's own time may be up. What
is walked is the product's own ``decide`` and ``evolve``; ``tests/support/laws.py`` reads along and
judges. Retry limits and the number of holds, cancels and replays are small, so that the walk ends.
In the suite a real saga has one attempt and a hold, and a delete two attempts and no hold as well;
what is marked ``long`` has both, and longer shapes. A saga with a step of each kind has both in the
suite as well.

A search that finds nothing proves something only if it would have found something. So the second
half breaks the decider in a dozen ways, and each must be caught.
"""

import contextlib
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations_with_replacement
from typing import Any, Final, TypeAlias

import pytest

from evosaga.events.model import (
    CompensationBegan,
    CompensationSucceeded,
    Direction,
    SagaCancelRequested,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    SagaResumed,
    StepFailed,
)
from evosaga.orchestrator.engine.decider import (
    Idle,
    NextAction,
    Record,
    Run,
    advance,
    attempt_lost,
    can_compensate,
    deadline_seconds,
    decide,
    intent,
)
from evosaga.orchestrator.engine.projection import lease_seconds, status_row
from evosaga.orchestrator.engine.retries import WORKER_LOST
from evosaga.orchestrator.engine.state import OPEN, IllegalTransition, State, evolve
from evosaga.sagas.definition import Kind, Retry, Saga, compensatable, pivot, retryable
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.delete_integration import DELETE_INTEGRATION
from tests.support.given_when_then import (
    TRIP,
    begun,
    cancelled,
    nothing,
    out_of_time,
    resumed,
    step,
    undo,
)
from tests.support.laws import Chronicle, LawBroken
from tests.support.sampled import sampled

Decide: TypeAlias = Callable[[Saga, State], NextAction]
Evolve: TypeAlias = Callable[[State, SagaEvent], State]
OVER: Final = ("completed", "compensated", "parked")

STATUSES: Final = {"running", "compensating", "completed", "compensated", "failed", "rejected"}
WORKER: Final = "w"


@dataclass(frozen=True)
class Purse:
    """How much the world may still do to a saga, so that every walk ends."""

    holds: int = 1
    cancels: int = 1
    resumes: int = 1
    losses: int = 0
    """Workers that may be lost; when there are none left it costs a hold."""


@dataclass
class Walk:
    """What a search saw."""

    saga: Saga
    next: list[list[int]] = field(default_factory=list)
    """For each state, by the order in which they were found, the states it may lead to."""
    endings: Counter[str] = field(default_factory=Counter)
    undone: set[tuple[str, ...]] = field(default_factory=set)
    """What turns undid."""

    @property
    def states(self) -> int:
        return len(self.next)


def small(saga: Saga, attempts: int = 2) -> Saga:
    """The same saga with few attempts a step."""
    steps = (replace(s, retry=Retry(attempts=attempts)) for s in saga.steps)
    return replace(saga, steps=tuple(steps))


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """A walk keeps all it finds and makes no cycles: looking for some is a third of its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@no_collections()
def explore(
    saga: Saga, decide: Decide = decide, evolve: Evolve = evolve, purse: Purse | None = None
) -> Walk:
    """Walk every state once. Raises ``LawBroken``, another ``AssertionError`` or the decider's."""
    walk = Walk(saga)
    start = begun(saga, deadline=900.0)
    first = (evolve(State(), start), Chronicle().told(saga, start), purse or Purse())
    numbers = {key(*first): 0}
    waiting = deque([first])
    while waiting:
        state, told, left = waiting.popleft()
        action = decide(saga, state)
        check(saga, state, told, action, decide is genuine)
        ways = list(onward(saga, state, action, left))
        assert ways or told.phase in OVER, f"stuck: {told}"
        if told.phase in OVER:
            walk.endings[told.phase] += 1
        walk.next.append([])
        for event, purse_after in ways:
            if isinstance(event, CompensationBegan):
                walk.undone.add(event.steps)
            after = evolve(state, event)._replace(sequence=0, runs=1)
            found = (after, told.told(saga, event), purse_after)
            number = numbers.setdefault(key(*found), len(numbers))
            if number == len(walk.next) + len(waiting):
                waiting.append(found)
            walk.next[-1].append(number)
    return walk


def goes_in_circles(walk: Walk) -> bool:
    """Whether some way never ends: peel off what only leads to what is peeled off already."""
    before: list[list[int]] = [[] for _ in walk.next]
    for number, ways in enumerate(walk.next):
        for way in ways:
            before[way].append(number)
    open_ways = [len(ways) for ways in walk.next]
    peeled = [number for number, count in enumerate(open_ways) if not count]
    for number in peeled:
        for earlier in before[number]:
            open_ways[earlier] -= 1
            if not open_ways[earlier]:
                peeled.append(earlier)  # the list is the queue
    return len(peeled) < walk.states


def onward(
    saga: Saga, state: State, action: NextAction, purse: Purse
) -> Iterator[tuple[SagaEvent, Purse]]:
    """Each event that may come next, and what is left of the purse then."""
    match action:
        case Record(event):
            yield event, purse
        case Run():
            yield intent(action, WORKER, 1.0), purse
        case Idle("in flight"):
            yield from outcomes(state, purse)
        case Idle():
            pass
    if state.status in OPEN and purse.cancels:
        left = replace(purse, cancels=purse.cancels - 1)
        yield cancelled(), left
        if deadline_seconds(saga, state) is not None and state.in_flight is None:
            yield out_of_time(), left
    if state.status == "failed" and purse.resumes:
        left = replace(purse, resumes=purse.resumes - 1)
        yield resumed(), left
        if state.direction == "forward":
            for gone in (s.name for s in saga.steps if state.progress(s.name).done):
                yield resumed(gone), left


def outcomes(state: State, purse: Purse) -> Iterator[tuple[SagaEvent, Purse]]:
    """Whatever an attempt in flight may come to."""
    flight = state.in_flight
    assert flight is not None
    if purse.losses:
        yield attempt_lost(state), replace(purse, losses=purse.losses - 1)
    elif purse.holds:
        yield attempt_lost(state), replace(purse, holds=purse.holds - 1)
    ends, holds = landings(flight.direction, flight.step, flight.attempt)
    for event in ends:
        yield event, purse
    if purse.holds:
        for event in holds:
            yield event, replace(purse, holds=purse.holds - 1)


@cache
def landings(
    direction: Direction, name: str, n: int
) -> tuple[tuple[SagaEvent, ...], tuple[SagaEvent, ...]]:
    """What an attempt may say of itself: that it is over, and that it is held."""
    tell = step if direction == "forward" else undo
    ends = (tell.succeeded(name, n), tell.rejected(name, n), tell.unknown(name, n))
    holds = (
        tell.held(name, n),
        tell.held(name, n, in_doubt=True),
        tell.held(name, n, retry_after=5.0),
    )
    return tuple(story[1] for story in ends), tuple(story[1] for story in holds)


def check(saga: Saga, state: State, told: Chronicle, action: NextAction, whole: bool) -> None:
    """What must hold in every state, whatever led to it."""
    assert state.status in STATUSES
    phase = {"parked": "failed"}.get(told.phase, told.phase)
    assert state.status == phase, "the state and the chronicle disagree"
    over = state.status in ("completed", "compensated", "failed")
    resting = isinstance(action, Idle)
    assert resting is (over or state.in_flight is not None), "a saga that is not over goes on"
    if isinstance(action, Run):
        assert action.delay >= 0.0
        assert action.effect is not None
    if state.status == "failed":
        assert state.parked is not None
        assert state.parked.step in {s.name for s in saga.steps}, "a parked saga names its step"
    if state.direction == "forward":
        turns = can_compensate(saga, state)
        assert turns is not told.past(saga), "the point of no return is where the laws see it"
        ends = turns and not told.cancelled and told.done < {s.name for s in saga.steps}
        ends = ends and state.status == "running"
        assert ends is (deadline_seconds(saga, state) is not None), (
            "as long as it can, it has a deadline"
        )
    else:
        assert deadline_seconds(saga, state) is None
    if not whole:
        return
    _, after, final = advance(saga, state)
    for at, what in ((after, final), (state, decide(saga, state))):
        seen = status_row(saga, at, what, "owner")
        active = at.status in ("running", "compensating")
        assert seen.status == at.status
        assert active is (seen.due_in is not None) is (seen.owner is not None)
        if at.in_flight is not None:
            assert seen.due_in == lease_seconds(saga.step(at.in_flight.step))
            assert (seen.step, seen.direction) == (at.in_flight.step, at.in_flight.direction)
        if isinstance(what, Run):
            assert (seen.step, seen.due_in) == (what.step.name, what.delay)
        if at.status == "failed":
            assert seen.step is not None
            assert seen.direction == (
                "compensation" if told.turned or at.compensation else "forward"
            )
        if at.status in ("compensating", "compensated", "failed"):
            assert seen.code, "somebody will ask why"
        if at.status == "completed":
            assert seen.code is None, "all is well"


def key(state: State, told: Chronicle, purse: Purse) -> tuple[Any, ...]:
    """A hashable stand-in for a state; what never differs within one walk is left out."""
    failure = state.failure and (
        state.failure.step,
        state.failure.attempt,
        state.failure.outcome,
        state.failure.code,
        state.failure.retry_after_seconds,
    )
    steps = tuple(
        (
            (name, p.in_doubt, p.done, p.undone),
            # What a step that is over has lost changes nothing any more.
            (p.attempts - p.lost,) if p.done else p.counted("forward"),
            (p.undo_attempts - p.undo_lost,) if p.undone else p.counted("compensation"),
        )
        for name, p in sorted(state.steps.items())
    )
    turned = state.compensation and (state.compensation.because, state.compensation.step)
    return (
        (state.status, state.direction, state.cancel_requested, state.deadline_exceeded),
        (state.holds, state.to_compensate),
        (state.in_flight, failure, steps, turned),
        (told, purse),
    )


genuine: Final = decide


SHAPES: Final = [
    shape
    for length in (1, 2, 3)
    for shape in combinations_with_replacement("CPR", length)
    if shape.count("P") < 2
]
"""Every order of up to three steps that a saga may have."""


def shaped(shape: str, attempts: int = 2) -> Saga:
    """A saga with steps c1, c2, p3, r4 for the shape ``CCPR``."""
    make = {
        "C": lambda name: compensatable(name, do=nothing, undo=nothing),
        "P": lambda name: pivot(name, do=nothing),
        "R": lambda name: retryable(name, do=nothing),
    }
    steps = tuple(make[kind](f"{kind.lower()}{n}") for n, kind in enumerate(shape, 1))
    return small(replace(TRIP, steps=steps), attempts)


SAGAS: Final = {s.name: s for s in (CREATE_INTEGRATION, DELETE_INTEGRATION)}


UNDONE: Final = {
    "create-integration": {
        (),
        ("evolution",),
        ("postgres", "evolution"),
        ("cache", "postgres", "evolution"),
    },
    "delete-integration": {(), ("mark",)},
}
"""Every set of steps that can be left behind."""


# --- the sagas as they are ---------------------------------------------------------------------


def judged(name: str, attempts: int, purse: Purse, floor: int) -> None:
    """Walk a real saga, and see that the walk was long enough to mean something."""
    walk = explore(small(SAGAS[name], attempts), purse=purse)
    print(f"{name}: {walk.states} states, {sum(map(len, walk.next))} events between them")
    assert walk.states > floor
    assert set(walk.endings) == set(OVER), "every ending was reached"
    assert walk.undone == UNDONE[name], "whatever can be left behind is undone somewhere"
    assert not goes_in_circles(walk), "every way comes to an end"


@pytest.mark.parametrize(
    ("name", "attempts", "purse", "floor"),
    sampled(
        (
            walks := [
                ("create-integration", 1, Purse(), 5_000),
                ("delete-integration", 1, Purse(), 2_000),
                ("create-integration", 2, Purse(holds=0), 15_000),
                ("delete-integration", 2, Purse(holds=0), 4_000),
            ]
        ),
        keep=walks[:2],
    ),
)
def test_no_way_that_the_world_can_take_breaks_a_law(
    name: str, attempts: int, purse: Purse, floor: int
) -> None:
    judged(name, attempts, purse, floor)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "floor"), [("create-integration", 60_000), ("delete-integration", 15_000)]
)
def test_no_way_of_two_attempts_and_a_hold_breaks_a_law(name: str, floor: int) -> None:
    judged(name, 2, Purse(), floor)


SHORT: Final = ["C", "P", "R", "PR"]
"""The beginnings and ends that ``ONE_OF_EACH``, whose search is in the suite, does not have."""


@pytest.mark.parametrize("shape", sampled(map("".join, SHAPES), keep=SHORT))
def test_the_laws_hold_for_a_saga_of_any_shape(shape: str) -> None:
    walk = explore(shaped(shape))
    assert walk.states > 100
    assert not goes_in_circles(walk)


ONE_OF_EACH: Final = shaped("CCPR")
MANY_LOSSES: Final = Purse(holds=0, losses=14)
"""More than one step in both directions, or the same step after a replay, can come to."""


@pytest.mark.fault("b16")
@pytest.mark.parametrize("shape", sampled("CPR", keep="C"))
def test_the_laws_hold_however_many_workers_a_saga_outlives(shape: str) -> None:
    walk = explore(shaped(shape), purse=MANY_LOSSES)
    assert not goes_in_circles(walk)


# --- and the same search on deciders that are wrong --------------------------------------------


def forgets_the_step_in_doubt(saga: Saga, state: State) -> NextAction:
    return undoing(decide(saga, state), lambda name: state.progress(name).done)


def takes_a_refusal_for_proof_that_nothing_ever_happened(saga: Saga, state: State) -> NextAction:
    refused = state.failure and state.failure.outcome == "rejected" and state.failure.step
    return undoing(decide(saga, state), lambda name: name != refused)


def undoes_in_the_order_in_which_things_were_done(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(CompensationBegan() as turn):
            return Record(turn.model_copy(update={"steps": turn.steps[::-1]}))
        case action:
            return action


def undoes_one_step_too_few(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(CompensationBegan() as turn):
            return Record(turn.model_copy(update={"steps": turn.steps[:-1]}))
        case action:
            return action


def undoes_steps_that_were_never_tried(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(CompensationBegan() as turn):
            return Record(turn.model_copy(update={"steps": compensatables(saga)}))
        case action:
            return action


def takes_the_pivot_for_a_compensatable_step(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(direction="forward") as park) if is_pivot(saga, park.step):
            return Record(turn_because_of(park, (park.step, *compensatables(saga))))
        case action:
            return action


def turns_on_a_refused_pivot_though_it_is_in_doubt(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(direction="forward") as park) if is_pivot(saga, park.step):
            return Record(turn_because_of(park, compensatables(saga)))
        case action:
            return action


def turns_when_a_retryable_step_is_stuck(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(direction="forward") as park) if not is_pivot(saga, park.step):
            return Record(turn_because_of(park, compensatables(saga)))
        case action:
            return action


def turns_though_the_point_of_no_return_is_long_past(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(direction="forward") as park) if (
            saga.step(park.step).kind is Kind.COMPENSATABLE
        ):
            return Record(turn_because_of(park, compensatables(saga)))
        case action:
            return action


def turns_on_a_cancel_however_late(saga: Saga, state: State) -> NextAction:
    action = decide(saga, state)
    if state.cancel_requested and state.direction == "forward" and isinstance(action, Run):
        turn = {"because": "cancelled", "code": "c", "message": "m"}
        return Record(CompensationBegan(**turn, steps=compensatables(saga)))
    return action


def does_not_listen_to_a_cancel(saga: Saga, state: State) -> NextAction:
    return decide(saga, state._replace(cancel_requested=False))


def takes_a_deadline_for_a_persons_wish(saga: Saga, state: State) -> NextAction:
    return decide(saga, state._replace(deadline_exceeded=False))


def lets_held_burn_an_attempt(saga: Saga, state: State) -> NextAction:
    action = decide(saga, state)
    if isinstance(action, Run) and state.failure and state.failure.outcome == "held":
        return replace(action, attempt=action.attempt + 1)
    return action


def never_gives_up(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(step=name, direction=direction)):
            progress = state.progress(name)
            tries = progress.attempts if direction == "forward" else progress.undo_attempts
            return Run(saga.step(name), direction, tries + 1)
        case action:
            return action


def holds_a_lost_worker_against_the_step(saga: Saga, state: State) -> NextAction:
    steps = {name: p._replace(lost=0, undo_lost=0) for name, p in state.steps.items()}
    return decide(saga, state._replace(steps=steps))


def kills_one_worker_after_another(saga: Saga, state: State) -> NextAction:
    if state.failure is None or state.failure.code != WORKER_LOST or state.status == "failed":
        return decide(saga, state)
    name = state.failure.step
    first = state.progress(name)._replace(attempts=1, lost=1, undo_attempts=1, undo_lost=1)
    match decide(saga, state._replace(steps={**state.steps, name: first})):
        case Run() as run if run.step.name == name:
            return replace(run, attempt=state.failure.attempt + 1)
        case action:
            return action


def gives_up_at_the_first_unknown(saga: Saga, state: State) -> NextAction:
    action = decide(saga, state)
    if isinstance(action, Run) and action.attempt == 2:
        return Record(
            SagaFailed(step=action.step.name, direction=action.direction, code="c", message="m")
        )
    return action


def tries_a_refused_step_again(saga: Saga, state: State) -> NextAction:
    failure, action = state.failure, decide(saga, state)
    if failure and failure.outcome == "rejected" and state.direction == "forward":
        return Run(saga.step(failure.step), "forward", failure.attempt + 1)
    return action


def stops_at_the_last_step_but_one(saga: Saga, state: State) -> NextAction:
    action = decide(saga, state)
    if isinstance(action, Run) and action.step is saga.steps[-1]:
        return Record(SagaCompleted())
    return action


def calls_it_compensated_when_the_undo_is_stuck(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(direction="compensation", code=code, message=message)):
            return Record(SagaCompensated(code=code, message=message))
        case action:
            return action


def turns_forward_again_when_the_undo_is_stuck(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed(direction="compensation")):
            return Run(saga.steps[-1], "forward", 1)
        case action:
            return action


def parks_without_saying_where(saga: Saga, state: State) -> NextAction:
    match decide(saga, state):
        case Record(SagaFailed() as park):
            return Record(park.model_copy(update={"step": saga.steps[0].name}))
        case action:
            return action


def forgets_a_saga_that_is_held(saga: Saga, state: State) -> NextAction:
    if state.failure and state.failure.outcome == "held" and not state.in_flight:
        return Idle("in flight")
    return decide(saga, state)


WRONG_DECIDERS: Final[list[Decide]] = [
    forgets_the_step_in_doubt,
    takes_a_refusal_for_proof_that_nothing_ever_happened,
    undoes_in_the_order_in_which_things_were_done,
    undoes_one_step_too_few,
    undoes_steps_that_were_never_tried,
    takes_the_pivot_for_a_compensatable_step,
    turns_on_a_refused_pivot_though_it_is_in_doubt,
    turns_when_a_retryable_step_is_stuck,
    turns_though_the_point_of_no_return_is_long_past,
    turns_on_a_cancel_however_late,
    does_not_listen_to_a_cancel,
    takes_a_deadline_for_a_persons_wish,
    lets_held_burn_an_attempt,
    never_gives_up,
    holds_a_lost_worker_against_the_step,
    gives_up_at_the_first_unknown,
    tries_a_refused_step_again,
    stops_at_the_last_step_but_one,
    calls_it_compensated_when_the_undo_is_stuck,
    turns_forward_again_when_the_undo_is_stuck,
    parks_without_saying_where,
    forgets_a_saga_that_is_held,
]


def forgets_doubt_at_a_replay(state: State, event: SagaEvent) -> State:
    after = evolve(state, event)
    return without_doubt(after) if isinstance(event, SagaResumed) else after


def forgets_what_a_replay_does_again(state: State, event: SagaEvent) -> State:
    if isinstance(event, SagaResumed):
        event = event.model_copy(update={"redo": None})
    return evolve(state, event)


def forgets_what_a_held_attempt_may_have_done(state: State, event: SagaEvent) -> State:
    if isinstance(event, StepFailed) and event.outcome == "held":
        event = event.model_copy(update={"in_doubt": False})
    return evolve(state, event)


def takes_a_lost_worker_for_nothing_happened(state: State, event: SagaEvent) -> State:
    if isinstance(event, StepFailed) and event.code == WORKER_LOST:
        event = event.model_copy(update={"outcome": "rejected"})
    return evolve(state, event)


def forgets_what_remains_to_be_undone(state: State, event: SagaEvent) -> State:
    after = evolve(state, event)
    return after._replace(to_compensate=()) if isinstance(event, CompensationSucceeded) else after


def lets_a_replay_forget_that_a_step_was_begun(state: State, event: SagaEvent) -> State:
    after = evolve(state, event)
    if not isinstance(event, SagaResumed | SagaCancelRequested) or state.parked is None:
        return after
    rest = {name: p for name, p in after.steps.items() if name != state.parked.step}
    return after._replace(steps=rest)


WRONG_MEMORIES: Final[list[Evolve]] = [
    forgets_doubt_at_a_replay,
    forgets_what_a_replay_does_again,
    forgets_what_a_held_attempt_may_have_done,
    takes_a_lost_worker_for_nothing_happened,
    forgets_what_remains_to_be_undone,
    lets_a_replay_forget_that_a_step_was_begun,
]
CAUGHT: Final = (AssertionError, IllegalTransition)


@pytest.mark.parametrize("wrong", WRONG_DECIDERS, ids=lambda f: f.__name__)
def test_the_search_catches_a_decider_that(wrong: Decide) -> None:
    with pytest.raises(CAUGHT):
        explore(ONE_OF_EACH, decide=wrong)


def test_the_search_catches_a_decider_that_kills_one_worker_after_another() -> None:
    with pytest.raises(LawBroken, match="workers are enough"):
        explore(shaped("C"), decide=kills_one_worker_after_another, purse=MANY_LOSSES)


@pytest.mark.parametrize("wrong", WRONG_MEMORIES, ids=lambda f: f.__name__)
def test_the_search_catches_a_memory_that(wrong: Evolve) -> None:
    with pytest.raises(CAUGHT):
        explore(ONE_OF_EACH, evolve=wrong)


def test_the_search_finds_no_fault_with_the_right_one_on_the_same_saga() -> None:
    walk = explore(ONE_OF_EACH)
    assert set(walk.endings) == set(OVER)
    assert not goes_in_circles(walk)


def undoing(action: NextAction, keep: Callable[[str], bool]) -> NextAction:
    """The same turn, undoing only some of its steps."""
    match action:
        case Record(CompensationBegan() as turn):
            kept = tuple(name for name in turn.steps if keep(name))
            return Record(turn.model_copy(update={"steps": kept}))
        case _:
            return action


def turn_because_of(park: SagaFailed, steps: tuple[str, ...]) -> CompensationBegan:
    return CompensationBegan(
        because="step_failed", step=park.step, code=park.code, message=park.message, steps=steps
    )


def compensatables(saga: Saga) -> tuple[str, ...]:
    """All of them, last first."""
    return tuple(s.name for s in reversed(saga.steps) if s.kind is Kind.COMPENSATABLE)


def is_pivot(saga: Saga, name: str) -> bool:
    return saga.step(name).kind is Kind.PIVOT


def without_doubt(state: State) -> State:
    steps = {name: p._replace(in_doubt=False) for name, p in state.steps.items()}
    return state._replace(steps=steps)
