"""When a step is tried again, and when it has used up its attempts. Pure: no clock, no chance.

An attempt lost with its worker leaves the step in doubt, but mostly says nothing against it: its
worker was killed, paused, or overloaded. So losses are counted apart. The first is made good at
once, the next after growing pauses, and only when a step has lost ``LOSSES`` times as many
attempts as it has is it given up on: it may be what kills them. Delays are in seconds.
"""

from hashlib import blake2b
from typing import Final

from evosaga.events.model import CompensationFailed, Direction, StepFailed
from evosaga.orchestrator.engine.state import Progress, State
from evosaga.sagas.definition import Step

WORKER_LOST: Final = "worker_lost"
"""Failure code of an attempt whose worker vanished."""
LOSSES: Final = 3
"""A step may lose so many times its own attempts with their workers."""
_HOLD_FIRST, _HOLD_CAP, _LOSS_CAP = 0.5, 30.0, 5.0


def used_up(progress: Progress, step: Step, direction: Direction) -> bool:
    """Whether the step may not be tried again without a person's word."""
    own, lost = progress.counted(direction)
    most = step.retry_of(direction).attempts
    return own >= most or lost >= LOSSES * most


def backoff(state: State, step: Step, failure: StepFailed | CompensationFailed) -> float:
    """Seconds from the failure to the next attempt."""
    own, lost = state.progress(step.name).counted(state.direction)
    retry = step.retry_of(state.direction)
    if failure.code != WORKER_LOST:
        return _jitter(state, failure, retry.delay(own))
    return _jitter(state, failure, min(_LOSS_CAP, retry.delay(lost - 1))) if lost > 1 else 0.0


def hold_delay(state: State, failure: StepFailed | CompensationFailed) -> float:
    """Seconds until what was held is tried again, with the same number."""
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
