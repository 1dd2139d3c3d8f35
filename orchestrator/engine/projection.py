"""Projection of a saga's state to its status row, which queries and the recovery sweep read.

Pure. Every append uses it, so all rows can be rebuilt from the log.
"""

from evosaga.events.append import StatusRow
from evosaga.events.model import SagaRejected, SagaStarted
from evosaga.events.turns import WAITING, waits_for
from evosaga.orchestrator.engine.decider import NextAction, Run, deadline_seconds
from evosaga.orchestrator.engine.state import State
from evosaga.orchestrator.engine.turns import waits
from evosaga.sagas.definition import Saga, Step

LEASE_MARGIN = 10.0
"""Seconds by which a lease outlives the step's timeout, so that the timeout is recorded first."""


def lease_seconds(step: Step) -> float:
    """How long a claimed attempt of this step may take before it counts as lost."""
    return step.timeout + LEASE_MARGIN


def status_row(saga: Saga, state: State, action: NextAction, owner: str | None) -> StatusRow:
    """The row after ``state``, when ``action`` is what comes next; it shows only a ``Run``.

    ``owner`` drives the saga while it is active. An attempt in flight is due when its lease is
    over, and a waiting saga at its delay or its deadline, whichever is first.
    """
    assert state.status is not None
    flight = state.in_flight
    active = state.status in ("running", "compensating")
    step, direction, attempt = None, None, None
    if flight is not None:
        step, direction, attempt = flight.step, flight.direction, flight.attempt
    elif isinstance(action, Run):
        step, direction, attempt = action.step.name, action.direction, action.attempt
    elif state.parked is not None:
        step, direction = state.parked.step, state.parked.direction
    due_in: float | None = action.delay if isinstance(action, Run) else 0.0
    if flight is not None:
        due_in = lease_seconds(saga.step(flight.step))
    code, message = _reason(state)
    waiting, deadline = waits(state), deadline_seconds(saga, state)
    if waiting:
        # No worker takes it by its time: it is taken when its turn has come, or to give up.
        due_in, owner = deadline, None
    return StatusRow(
        status=state.status,
        step=step,
        direction=direction,
        attempt=attempt,
        code=code,
        message=message,
        due_in=due_in if active else None,
        due_by=deadline if active and flight is None else None,
        owner=owner if active else None,
        existing_instance=(
            state.start.existing_instance
            if state.status == "rejected" and isinstance(state.start, SagaRejected)
            else None
        ),
    )


def _reason(state: State) -> tuple[str | None, str | None]:
    """Why the saga is where it is: the newest thing that went wrong, if any."""
    if waits(state) and isinstance(state.start, SagaStarted) and state.start.behind is not None:
        return WAITING, waits_for(state.start.behind)
    if state.status == "rejected" and isinstance(state.start, SagaRejected):
        return state.start.code, state.start.message
    for trouble in (state.parked, state.failure, state.compensation):
        if trouble is not None:
            return trouble.code, trouble.message
    return None, None
