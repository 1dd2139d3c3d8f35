"""What one commit of a saga holds: a fact, the decisions it leads to, and the next claim.

Everything that can be known without another effect goes into the same commit: steps that this
saga's input leaves nothing to do in, and the effect in our own Postgres that *joins* it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evosaga.events.append import Append, StatusRow, TransactionalEffect, Written
from evosaga.events.model import SagaCancelRequested, SagaEvent, SagaStarted, StepSucceeded
from evosaga.orchestrator.engine.decider import (
    Idle,
    Run,
    advance,
    deadline_seconds,
    decide,
    held_again,
    intent,
)
from evosaga.orchestrator.engine.execution import context, from_exception, outcome_event
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.projection import lease_seconds, status_row
from evosaga.orchestrator.engine.resources import ResourceUnavailable, handed
from evosaga.orchestrator.engine.state import DEADLINE, State, evolve
from evosaga.orchestrator.engine.turns import waits
from evosaga.sagas.definition import InCommit
from evosaga.sagas.outcome import Outcome


@dataclass(frozen=True, slots=True)
class WorkerTerms:
    """A worker's terms for an append: its name, and whether it still begins attempts.

    ``begins`` is asked whenever it matters, since an append may wait long for its commit.
    ``max_in_memory_wait``: seconds; a saga that waits longer is released.
    """

    worker: str
    begins: Callable[[], bool]
    max_in_memory_wait: float
    services: object
    limited: bool = False
    """Whether attempts of limited steps need a place."""
    accepting: bool = False
    """Set for the commit that accepts a command, which many share: code of a saga that could raise
    there, a joined effect or ``skip_when``, is left to the engine."""


def next_commit(
    live: SagaInstance, fact: SagaEvent | None, raised: Exception | None, terms: WorkerTerms
) -> Append[State] | None:
    """One commit: the fact, the decisions it leads to, and the next intent. None: no news.

    An effect that should join it but has ``raised`` is recorded as an attempt like any other.
    """
    facts = [fact] if fact is not None else []
    events, state, action, row = _decide_all(live, live.state, facts, terms)
    join = None
    if (
        isinstance(action, Run)
        and isinstance(effect := action.effect, InCommit)
        and _begins(live, state, action, terms, bool(events))
    ):
        started = intent(action, terms.worker, 0.0)
        events, state = [*events, started], evolve(state, started)
        if raised is None:
            raised = live.refused or _unavailable(live, terms)
        if raised is None:
            join = _join(live, effect, len(events), state, terms)
        else:
            assert state.in_flight is not None
            meaning = effect.meaning(raised) if raised is not live.refused else None
            outcome = meaning or from_exception(live, state.in_flight, raised)
            failed = outcome_event(state.in_flight, outcome)
            if len(events) == 1 and (after := held_again(live.saga, state, failed)) is not None:
                return _append(live, _hold_again(live, after, terms))
            more, state, _, row = _decide_all(live, state, [failed], terms)
            events += more
    if not events:
        return None
    return _append(live, Written(events, row, state), join)


def _append(
    live: SagaInstance, written: Written[State], join: TransactionalEffect[State] | None = None
) -> Append[State]:
    return Append(
        live.saga_id,
        live.state.sequence,
        written.events,
        written.row,
        live.correlation_id,
        live.causation_id,
        written.state,
        join,
    )


def _decide_all(
    live: SagaInstance, state: State, facts: Sequence[SagaEvent], terms: WorkerTerms
) -> tuple[list[SagaEvent], State, Run | Idle, StatusRow]:
    """The facts, what is decided on them, and the claim of the next outside attempt."""
    for fact in facts:
        state = evolve(state, fact)
    overdue = late(live, state)
    for request in overdue:
        state = evolve(state, request)
    decided, state, action = advance(live.saga, state)
    events = [*facts, *overdue, *decided]
    while skipped := _skip(live, state, action, terms, bool(events)):
        for event in skipped:
            state = evolve(state, event)
        decided, state, action = advance(live.saga, state)
        events += [*skipped, *decided]
    if (
        isinstance(action, Run)
        and not isinstance(action.effect, InCommit)
        and _begins(live, state, action, terms, bool(events))
    ):
        events.append(intent(action, terms.worker, lease_seconds(action.step)))
        state = evolve(state, events[-1])
    return events, state, action, status_row(live.saga, state, action, _owner(state, action, terms))


def _owner(state: State, action: Run | Idle, terms: WorkerTerms) -> str | None:
    """Owner of the saga from this commit on; None: it has none until it is due.

    A saga that waits long is released: the sweep finds it when it is due. One that was claimed is
    its worker's, however long the wait before it was.
    """
    waits = (
        isinstance(action, Run)
        and state.in_flight is None
        and action.delay > terms.max_in_memory_wait
    )
    return terms.worker if terms.begins() and not waits else None


def late(live: SagaInstance, state: State) -> list[SagaEvent]:
    """A saga whose time is up asks for its own cancel: whenever it is looked at, and once."""
    start = state.start
    if state.in_flight or not isinstance(start, SagaStarted) or start.deadline_seconds is None:
        return []
    if time.monotonic() - live.started_at < start.deadline_seconds:  # as nearly always
        return []
    limit = deadline_seconds(live.saga, state)
    if limit is None:
        return []
    return [SagaCancelRequested(by=DEADLINE, reason=f"{limit:g} s are over")]


def _skip(
    live: SagaInstance, state: State, action: Run | Idle, terms: WorkerTerms, fresh: bool
) -> list[SagaEvent]:
    """A step in which there is nothing to do: claimed and done in one."""
    if not isinstance(action, Run) or (skip_when := action.step.skip_when) is None:
        return []
    if not _begins(live, state, action, terms, fresh):
        return []
    if live.refused is not None or (nothing := skip_when(live.input)) is None:
        return []
    claim = intent(action, terms.worker, 0.0)
    done = StepSucceeded(step=claim.step, attempt=claim.attempt, result=dict(nothing))
    return [claim, done]


def _begins(live: SagaInstance, state: State, action: Run, terms: WorkerTerms, fresh: bool) -> bool:
    """Whether the attempt is claimed in this commit; ``fresh``: its delay starts with it."""
    if not terms.begins() or (waits(state) and not live.has_turn and live.refused is None):
        return False
    step = action.step
    if terms.accepting and (isinstance(action.effect, InCommit) or step.skip_when or step.limits):
        return False
    if step.limits and terms.limited and not isinstance(action.effect, InCommit):
        place = live.place
        if place is None or (place.step.name, place.direction) != (step.name, action.direction):
            return False
    return action.delay <= (0.0 if fresh else time.monotonic() - live.last_at + 0.001)


def _join(
    live: SagaInstance, effect: InCommit, before: int, state: State, terms: WorkerTerms
) -> TransactionalEffect[State]:
    """An effect in our own Postgres becomes part of the commit of its own outcome.

    ``before``: how many events the append has without it, its own claim included.
    """
    flight = state.in_flight
    assert flight is not None

    def then(outcome: Outcome) -> Written[State]:
        fact = outcome_event(flight, outcome)
        if before == 1 and (after := held_again(live.saga, state, fact)) is not None:
            return _hold_again(live, after, terms)
        events, last, _, row = _decide_all(live, state, [fact], terms)
        return Written(events, row, last)

    return TransactionalEffect(effect.run, context(live, flight, terms.services, state), then)


def _unavailable(live: SagaInstance, terms: WorkerTerms) -> ResourceUnavailable | None:
    """Why there are no services to hand a joined effect; None: there are."""
    try:
        handed(terms.services, live.saga.name)
    except ResourceUnavailable as error:
        return error
    return None


def _hold_again(live: SagaInstance, after: State, terms: WorkerTerms) -> Written[State]:
    """What a joined effect writes that was held once more: the row alone, no event.

    Its claim is taken back with it, so the sequence stays where it was.
    """
    after = after._replace(sequence=live.state.sequence)
    action = decide(live.saga, after)
    assert isinstance(action, Run)
    row = status_row(live.saga, after, action, _owner(after, action, terms))
    return Written([], replace(row, holds=after.holds), after)
