"""What one commit of a saga holds: a fact, the decisions it leads to, and the next claim.

Everything that can be known without another effect goes into the same commit: steps that this
saga's input leaves nothing to do in, and the effect in our own Postgres that *joins* it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evosaga.events.append import Append, StatusRow, TransactionalEffect
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
from evosaga.orchestrator.engine.execution import context, from_exception
from evosaga.orchestrator.engine.execution import outcome_event as fact_of
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.projection import LEASE_MARGIN, row
from evosaga.orchestrator.engine.state import DEADLINE, State, evolve
from evosaga.sagas.definition import InCommit
from evosaga.sagas.outcome import Outcome


@dataclass(frozen=True, slots=True)
class WorkerTerms:
    """On what terms a worker appends: under which name, and whether it still begins anything.

    ``begins`` is asked whenever it matters, since an append may wait long for its commit. ``nap``:
    so many seconds a saga may sleep in memory; one that sleeps longer is let go.
    """

    worker: str
    begins: Callable[[], bool]
    nap: float
    services: object


def next_commit(
    live: SagaInstance, fact: SagaEvent | None, raised: Exception | None, terms: WorkerTerms
) -> Append | None:
    """One commit: the fact, the decisions it leads to, and the next intent. None: no news.

    An effect that should join it but has ``raised`` is recorded as an attempt like any other.
    """
    facts = [fact] if fact is not None else []
    events, state, action, status_row = _decide_all(live, live.state, facts, terms)
    join = None
    if (
        isinstance(action, Run)
        and isinstance(effect := action.effect, InCommit)
        and _begins(live, action, terms, bool(events))
    ):
        started = intent(action, terms.worker, 0.0)
        events, state = [*events, started], evolve(state, started)
        if raised is None:
            join = _join(live, effect, events, state, terms)
        else:
            assert state.in_flight is not None
            said = effect.meaning(raised) or from_exception(live, state.in_flight, raised)
            failed = fact_of(state.in_flight, said)
            if len(events) == 1 and (after := held_again(live.saga, state, failed)) is not None:
                return _append(live, [], _held_row(live, after, terms))
            more, state, _, status_row = _decide_all(live, state, [failed], terms)
            events += more
    if not events and join is None:
        return None
    live.plan(events, state)
    return _append(live, events, status_row, join)


def _append(
    live: SagaInstance,
    events: Sequence[SagaEvent],
    status_row: StatusRow,
    join: TransactionalEffect | None = None,
) -> Append:
    return Append(
        live.saga_id,
        live.state.sequence,
        events,
        status_row,
        live.correlation_id,
        live.causation_id,
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
    while spared := _skip(live, action, terms, bool(events)):
        for event in spared:
            state = evolve(state, event)
        decided, state, action = advance(live.saga, state)
        events += [*spared, *decided]
    lease = 0.0
    if (
        isinstance(action, Run)
        and not isinstance(action.effect, InCommit)
        and _begins(live, action, terms, bool(events))
    ):
        lease = action.step.timeout + LEASE_MARGIN
        events.append(intent(action, terms.worker, lease))
        state = evolve(state, events[-1])
    # A saga that sleeps long is nobody's: the sweep finds it when it is due.
    # One that has just been claimed is its worker's, however long the wait before it was.
    live.let_go = isinstance(action, Run) and state.in_flight is None and action.delay > terms.nap
    owner = terms.worker if terms.begins() and not live.let_go else None
    due_by = None if state.in_flight else deadline_seconds(live.saga, state)
    return events, state, action, row(state, action, owner, lease, due_by)


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
    live: SagaInstance, action: Run | Idle, terms: WorkerTerms, fresh: bool
) -> list[SagaEvent]:
    """A step in which there is nothing to do: claimed and done in one."""
    if not isinstance(action, Run) or action.step.spare is None:
        return []
    nothing = action.step.spare(live.input)
    if nothing is None or not _begins(live, action, terms, fresh):
        return []
    claim = intent(action, terms.worker, 0.0)
    done = StepSucceeded(step=claim.step, attempt=claim.attempt, result=dict(nothing))
    return [claim, done]


def _begins(live: SagaInstance, action: Run, terms: WorkerTerms, fresh: bool) -> bool:
    """Whether the attempt is claimed in this commit; ``fresh``: its delay starts with it."""
    if not terms.begins():
        return False
    return action.delay <= (0.0 if fresh else time.monotonic() - live.last_at + 0.001)


def _join(
    live: SagaInstance,
    effect: InCommit,
    before: Sequence[SagaEvent],
    state: State,
    terms: WorkerTerms,
) -> TransactionalEffect:
    """An effect in our own Postgres becomes part of the commit of its own outcome."""
    flight = state.in_flight
    assert flight is not None

    def then(outcome: Outcome) -> tuple[list[SagaEvent], StatusRow]:
        told = [fact_of(flight, outcome)]
        if len(before) == 1 and (after := held_again(live.saga, state, told[0])) is not None:
            return [], _held_row(live, after, terms)
        events, after, _, status_row = _decide_all(live, state, told, terms)
        live.plan([*before, *events], after)
        return events, status_row

    return TransactionalEffect(effect.run, context(live, flight, terms.services, state), then)


def _held_row(live: SagaInstance, after: State, terms: WorkerTerms) -> StatusRow:
    """The row of a saga whose joined effect said once more that it can't be now; no event says so.

    What it did is taken back with its claim: nothing was written, so nothing was claimed.
    """
    after = after._replace(sequence=live.state.sequence)
    live.plan([], after)
    action = decide(live.saga, after)
    assert isinstance(action, Run)
    live.let_go = action.delay > terms.nap
    owner = terms.worker if terms.begins() and not live.let_go else None
    told = row(after, action, owner, 0.0, deadline_seconds(live.saga, after))
    return replace(told, holds=after.holds)
