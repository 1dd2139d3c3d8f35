"""Why a saga that is on its way is not further: who drives it, or what it waits for. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from evosaga.events.model import Direction, Recorded
from evosaga.orchestrator.engine.decider import Idle, Run, advance, can_compensate, deadline_seconds
from evosaga.orchestrator.engine.limits import LIMITED
from evosaga.orchestrator.engine.state import OPEN, State
from evosaga.orchestrator.queries.diagnosis import Diagnosis, SagaFacts, ago, span, who_could
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.sagas.definition import Kind, Saga, Step
from evosaga.sagas.explainer import HeldStep

_LATE: Final = timedelta(seconds=10)
"""Overdue for so long, a saga is not merely next in the queue."""

_MANY: Final = 20
"""Sagas of one organization under way, from which on it may be that which holds up another."""


def waiting_for(case: SagaFacts, history: Sequence[Recorded], state: State) -> Diagnosis:
    """What an active saga waits for, and when it goes on."""
    ahead = case.ahead
    if ahead is not None and ahead.status in OPEN:
        return _behind(case, ahead)
    if case.saga is None:
        return _unknown_here(case)
    if state.in_flight is not None:
        told = _in_flight(case, case.saga, history, state)
    else:
        _, _, action = advance(case.saga, state)
        told = _waiting(case, history, state, action)
    if not case.company.alive:
        told = replace(
            told,
            headline="Nothing happens: no worker is alive.",
            cure="start a worker: evosaga worker",
            next_at=None,
            details=(f"When one is: {told.headline[0].lower()}{told.headline[1:]}", *told.details),
        )
    return replace(told, details=(*told.details, *_course(case, case.saga, state)))


def _behind(case: SagaFacts, ahead: SagaView) -> Diagnosis:
    where = f" at step {ahead.step}" if ahead.step else ""
    stuck = ahead.status == "failed"
    return Diagnosis(
        f"It waits for saga {ahead.saga_id} ({ahead.saga}), which is {ahead.status}{where}.",
        (
            "Both have the same business key, and one works on it at a time.",
            f"It has waited for {ago(case.view.created_at, case)} and goes on by itself as soon "
            "as the other is over.",
        ),
        cure=f"the one ahead is parked; why: evosaga why {ahead.saga_id}" if stuck else None,
    )


def _unknown_here(case: SagaFacts) -> Diagnosis:
    view = case.view
    return Diagnosis(
        f"This release does not know {view.saga} v{view.version}.",
        (
            f"It has been {view.status} and unchanged for {ago(view.updated_at, case)}; a release "
            "that does not know a definition leaves its sagas alone.",
            *who_could(case),
        ),
        cure=f"run a worker of a release that has {view.saga} v{view.version}; before a deploy or "
        "a roll-back: evosaga check-deploy",
    )


def _in_flight(case: SagaFacts, saga: Saga, history: Sequence[Recorded], state: State) -> Diagnosis:
    flight = state.in_flight
    assert flight is not None
    what, last = _deed(flight.step, flight.direction), history[-1].recorded_at
    step = saga.step(flight.step)
    attempt = _which(state, step, flight.direction, flight.attempt)
    before = _before(state)
    if flight.worker in case.company.alive:
        return Diagnosis(
            f"Worker {flight.worker} is {what} right now ({attempt}).",
            (
                f"It has been at it for {ago(last, case)}, and has {step.timeout:g} s for it.",
                *before,
            ),
            next_at=last + timedelta(seconds=step.timeout),
            in_flight=True,
        )
    gone = "has gone silent" if flight.worker in case.company.silent else "has left"
    return Diagnosis(
        f"Worker {flight.worker}, which was {what}, {gone}.",
        (
            "Another one takes over within seconds. Whether that attempt had its effect is "
            "unknown, so the step looks before it acts again.",
            *before,
        ),
        next_at=case.now,
    )


def _waiting(
    case: SagaFacts, history: Sequence[Recorded], state: State, action: Run | Idle
) -> Diagnosis:
    if isinstance(action, Idle):  # a decision is due and will be recorded in a moment
        return Diagnosis("It is about to take its next decision.", next_at=case.now)
    due = history[-1].recorded_at + timedelta(seconds=action.delay)
    if case.view.held_claim is not None and case.view.next_at is not None:
        due = case.view.next_at
    step, failure = action.step, state.failure
    what = _thing(step.name, action.direction)
    of = _which(state, step, action.direction, action.attempt)
    if case.view.code == LIMITED and case.view.message and case.view.next_at is not None:
        names = " and ".join(str(limit) for limit in step.limits)
        told = Diagnosis(
            f"It {case.view.message}.",
            (
                f"{what[0].upper()}{what[1:]} needs one at {names}, which all workers share. That "
                "costs no attempt: it goes on by itself when its turn has come.",
            ),
            next_at=case.view.next_at,
        )
    elif failure is None:
        told = Diagnosis(f"It is about to go on with {what}.", next_at=due)
    elif failure.outcome == "held":
        since, more = _held_since(history), case.explain.held(held_step(case, state, action))
        told = Diagnosis(
            f"It waits: {failure.message}.",
            (
                f"{what[0].upper()}{what[1:]} has been held for {ago(since, case)}, "
                f"{_times(max(state.holds, case.view.holds or 0))}. That costs no attempt: it "
                "goes on by itself when the cause is gone.",
                *_again_now(case),
                *more.details,
            ),
            next_at=due,
            cure=more.cure or _CURES.get(failure.code),
        )
    else:
        told = Diagnosis(
            f"It waits before {of} of {what}: {failure.message}.",
            (f"Attempt {failure.attempt} ended {failure.outcome}; {_if_all_fail(case, action)}",),
            next_at=due,
        )
    return _overdue(case, told, due)


def _which(state: State, step: Step, direction: Direction, attempt: int) -> str:
    """Which of the step's attempts it is; those that were lost with workers are not its own."""
    _, lost = state.progress(step.name).counted(direction)
    more = f", {lost} more lost with their workers" if lost else ""
    return f"attempt {attempt - lost} of {step.retry.attempts}{more}"


def _overdue(case: SagaFacts, told: Diagnosis, due: datetime) -> Diagnosis:
    """Its time has come and gone, and no worker has taken it."""
    view = case.view
    if view.owner is None and due <= case.now and case.beside >= _MANY:
        told = replace(
            told,
            details=(
                f"Workers drive {case.beside} sagas of its organization, and of one organization "
                "no more than a share of what they can (EVOSAGA_ORGANIZATION_SHARE): it has its "
                "turn when some of them are over.",
                *told.details,
            ),
        )
    if case.now - due < _LATE or not case.company.alive or view.owner in case.company.alive:
        return told
    late = f"It is due since {ago(due, case)}, and no worker has taken it."
    if case.company.can_run(view.saga, view.version) is False:
        return replace(
            told,
            headline=f"No living worker knows {view.saga} v{view.version}.",
            details=(late, *who_could(case), *told.details),
            cure=f"run a worker of a release that has {view.saga} v{view.version}",
        )
    return replace(
        told,
        details=(late, "The living workers may have no room left.", *told.details),
        cure=told.cure or "start another worker: evosaga worker; and look: evosaga doctor",
    )


def _course(case: SagaFacts, saga: Saga, state: State) -> tuple[str, ...]:
    """Which way it goes, and what could change that."""
    if state.direction == "compensation" and state.compensation is not None:
        left = ", ".join(state.to_compensate) or "nothing"
        return (
            f"It is being rolled back because {state.compensation.message}. Left to undo: {left}.",
        )
    said = []
    if state.cancel_requested and not can_compensate(saga, state):
        said.append("A cancel was asked for after its point of no return, so it goes on.")
    if (limit := deadline_seconds(saga, state)) is not None:
        left_seconds = (case.view.created_at - case.now).total_seconds() + limit
        said.append(
            f"Unless it gets past its point of no return within {span(left_seconds)}, it is "
            "rolled back by itself."
        )
    return tuple(said)


def _before(state: State) -> tuple[str, ...]:
    if state.failure is None:
        return ()
    return (f"The attempt before ended {state.failure.outcome}: {state.failure.message}.",)


def _if_all_fail(case: SagaFacts, action: Run) -> str:
    assert case.saga is not None
    if action.direction == "compensation":
        return "when all have failed it is parked for a person to look."
    if action.step.kind is Kind.COMPENSATABLE:
        return "when all have failed the saga is rolled back."
    return "when all have failed it is parked for a person to look."


def _again_now(case: SagaFacts) -> tuple[str, ...]:
    view = case.view
    if view.held_claim is None or view.owner not in case.company.alive:
        return ()
    return (f"Worker {view.owner} is trying it again right now.",)


def _held_since(history: Sequence[Recorded]) -> datetime:
    """When the first of the unbroken row of held attempts was recorded."""
    since = history[-1].recorded_at
    for recorded in reversed(history):
        outcome = getattr(recorded.event, "outcome", None)
        if outcome == "held":
            since = recorded.recorded_at
        elif recorded.event.type not in ("step.started", "compensation.started"):
            break
    return since


def held_step(case: SagaFacts, state: State, action: Run) -> HeldStep:
    """The held step that ``action`` tries again, as a domain is asked about it."""
    assert state.failure is not None
    started = case.history[0].event if case.history else None
    return HeldStep(
        saga=case.view.saga,
        step=action.step.name,
        undo=action.direction == "compensation",
        code=state.failure.code,
        message=state.failure.message,
        in_doubt=state.progress(action.step.name).in_doubt,
        done=frozenset(name for name, progress in state.steps.items() if progress.done),
        facts=getattr(started, "facts", {}),
    )


_CURES: Final = {
    "dependency_unreachable": "is what the step calls up? evosaga doctor",
    "redis_misconfigured": "Redis forbids what evosaga needs, or is not the kind that it needs; "
    "what and the cure: evosaga doctor",
    "redis_unavailable": "is Redis up, and does it take writes? evosaga doctor",
}


def _deed(step: str, direction: Direction) -> str:
    return f"undoing step {step}" if direction == "compensation" else f"at step {step}"


def _thing(step: str, direction: Direction) -> str:
    return f"the undo of step {step}" if direction == "compensation" else f"step {step}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
