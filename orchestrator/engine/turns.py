"""Sagas that wait behind another one: nothing of them begins before their turn has come. Pure."""

from typing import ClassVar

from evosaga.events.model import SagaStarted
from evosaga.events.turns import WAITING, Ahead
from evosaga.orchestrator.engine.state import State


class AheadParked(Exception):
    """The saga that another one waited for is parked, so that the other is called off."""

    code: ClassVar[str] = "ahead_parked"

    def __init__(self, ahead: Ahead) -> None:
        super().__init__(
            f"saga {ahead.saga_id} ({ahead.saga}) ahead of it is parked at step {ahead.step}: "
            "replay that one, then ask again"
        )


def waits(state: State) -> bool:
    """Whether it is behind another saga and has begun nothing yet.

    Older releases began the first step and held it as ``waiting``.
    """
    start = state.start
    if not isinstance(start, SagaStarted) or start.behind is None or state.in_flight is not None:
        return False
    if state.status != "running" or state.cancel_requested or state.runs > 1:
        return False
    failure = state.failure
    if failure is None:
        return not state.steps
    held = failure.outcome == "held" and failure.code == WAITING
    return held and not any(progress.done for progress in state.steps.values())


def unsure(state: State) -> bool:
    """Whether it is behind another saga, and nothing of it shows that its turn had come.

    An attempt may be claimed only to be refused; a worker that is lost before it records that
    leaves a claim like any other.
    """
    start = state.start
    if not isinstance(start, SagaStarted) or start.behind is None or state.runs > 1:
        return False
    if state.status != "running" or (state.cancel_requested and state.in_flight is None):
        return False
    return not any(progress.done for progress in state.steps.values())
