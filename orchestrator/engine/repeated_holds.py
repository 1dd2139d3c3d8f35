"""Holds that follow a hold: they change the status row and write no event.

The first hold in a row is an event, so the history says that the saga waits and since when. The
next attempt is claimed by an event, as every attempt is before its effect. When that one is held
as well nothing has changed but when to try again: the row says so (``held_claim``, ``holds``, the
newest sentence) and has no owner until then. The worker that takes it tries again under the same
claim. Taking a row sets its owner, so only one worker tries; should that one die, the attempt
counts as lost like any other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from evosaga.events.event_log import Hold
from evosaga.events.model import (
    CompensationFailed,
    CompensationStarted,
    Recorded,
    SagaEvent,
    StepFailed,
    StepStarted,
)
from evosaga.orchestrator.engine.commit import late
from evosaga.orchestrator.engine.decider import Run, deadline_seconds, decide, held_again
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.state import State, replay

_TRIES = (StepStarted, StepFailed, CompensationStarted, CompensationFailed)


class HeldRow(Protocol):
    """What a status row says of a saga that was held again."""

    @property
    def held_claim(self) -> int | None: ...
    @property
    def holds(self) -> int | None: ...
    @property
    def code(self) -> str | None: ...
    @property
    def message(self) -> str | None: ...


class HeldView(HeldRow, Protocol):
    """The same of a saga as queries see it."""

    @property
    def status(self) -> str: ...
    @property
    def scheduled_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """A row as the sweep took it. ``was`` is its owner before; None: it had none.

    ``put_back``: it is due only because the clock was put back since its time was set.
    """

    was: str | None
    put_back: bool = False
    held_claim: int | None = None
    holds: int | None = None
    doubted_at: datetime | None = None
    code: str | None = None
    message: str | None = None


def claim_of(history: Sequence[Recorded]) -> int | None:
    """The sequence of the newest event about an attempt: what a row of holds rests on."""
    return next((r.sequence for r in reversed(history) if isinstance(r.event, _TRIES)), None)


def is_held(row: HeldRow, history: Sequence[Recorded]) -> bool:
    """Whether the row's hold is about the newest attempt, and not left over from another."""
    return row.held_claim is not None and row.held_claim == claim_of(history)


def held_fact(row: HeldRow, state: State) -> StepFailed | CompensationFailed | None:
    """The row's hold as the event that was not written; None when no attempt is claimed."""
    flight = state.in_flight
    if flight is None:
        return None
    make = StepFailed if flight.direction == "forward" else CompensationFailed
    return make(
        step=flight.step,
        attempt=flight.attempt,
        outcome="held",
        code=row.code or "held",
        message=row.message or "it was held",
    )


def resume(
    live: SagaInstance, history: Sequence[Recorded], taken: ClaimedRow, now: datetime
) -> bool:
    """Take in what the row says beyond the history; whether the attempt is still held."""
    if taken.put_back:
        live.last_at = float("-inf")
    if taken.was is not None or not is_held(taken, history):
        return False
    live.state = live.state._replace(holds=max(live.state.holds, taken.holds or 1))
    flight = live.state.in_flight
    if flight is not None and taken.doubted_at is not None:
        age = max(0.0, (now - taken.doubted_at).total_seconds())
        live.doubted_at[flight.step] = time.monotonic() - age
    if flight is not None:
        live.held = held_fact(taken, live.state)
    return True


def interrupted(live: SagaInstance) -> SagaEvent | None:
    """The hold as an event, when something else is to be done than to try again: a cancel, say."""
    fact, live.held = live.held, None
    if fact is None or _goes_on(live, fact) is not None:
        return None
    return fact


def hold_of(live: SagaInstance, fact: SagaEvent | None, worker: str) -> Hold | None:
    """What becomes of the row when the attempt was held again; None: it was not."""
    after = _goes_on(live, fact)
    if after is None or live.claim is None:
        return None
    assert isinstance(fact, StepFailed | CompensationFailed)
    action = decide(live.saga, after)
    assert isinstance(action, Run)
    return Hold(
        live.saga_id,
        live.state.sequence,
        worker,
        live.claim,
        after.holds,
        fact.code,
        fact.message,
        action.delay,
        deadline_seconds(live.saga, after),
        bool(getattr(fact, "in_doubt", False)),
    )


def _goes_on(live: SagaInstance, fact: SagaEvent | None) -> State | None:
    after = held_again(live.saga, live.state, fact)
    return None if after is None or late(live, after) else after


def with_hold(view: HeldView, history: Sequence[Recorded]) -> Sequence[Recorded]:
    """The history as it would be with the newest hold as an event, to explain it."""
    if view.status not in ("running", "compensating") or not is_held(view, history):
        return history
    last, at = history[-1], view.scheduled_at or history[-1].recorded_at
    fact = held_fact(view, replay(recorded.event for recorded in history))
    if fact is not None:
        return [*history, last.model_copy(update={"event": fact, "recorded_at": at})]
    newest = {"code": view.code or "held", "message": view.message or "it was held"}
    told = last.model_copy(update={"event": last.event.model_copy(update=newest)})
    return [*history[:-1], told]
