"""The status row that belongs to a state: what queries see and the sweep looks for.

Pure, and used for every append, so that the rows can be had again from the log.
"""

from evosaga.events.append import StatusRow
from evosaga.events.model import SagaRejected
from evosaga.orchestrator.engine.decider import Idle, Run
from evosaga.orchestrator.engine.state import State

LEASE_MARGIN = 10.0
"""Seconds a lease outlives the step's own timeout, so that a timeout is said before it is over."""


def row(
    state: State,
    action: Run | Idle,
    worker: str | None,
    lease_seconds: float = 0.0,
    due_by: float | None = None,
) -> StatusRow:
    """The row after ``state``, when ``action`` is what comes next.

    ``worker`` owns the saga while it is active; ``lease_seconds`` bounds an attempt in flight.
    However long it waits, it is looked at ``due_by`` seconds after its start (``expires``).
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
    delay = action.delay if isinstance(action, Run) else 0.0
    code, message = _reason(state)
    return StatusRow(
        status=state.status,
        step=step,
        direction=direction,
        attempt=attempt,
        code=code,
        message=message,
        due_in=(lease_seconds if flight else delay) if active else None,
        due_by=due_by if active and flight is None else None,
        owner=worker if active else None,
        existing_instance=(
            state.start.existing_instance
            if state.status == "rejected" and isinstance(state.start, SagaRejected)
            else None
        ),
    )


def _reason(state: State) -> tuple[str | None, str | None]:
    """Why the saga is where it is: the newest thing that went wrong, if any."""
    if state.status == "rejected" and isinstance(state.start, SagaRejected):
        return state.start.code, state.start.message
    for trouble in (state.parked, state.failure, state.turned):
        if trouble is not None:
            return trouble.code, trouble.message
    return None, None
