"""A saga in the memory of the worker that drives it: definition, state, times."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from evosaga.events.append import Appended
from evosaga.events.model import (
    CompensationStarted,
    Direction,
    Recorded,
    SagaEvent,
    SagaFailed,
    SagaResumed,
    StepFailed,
    StepStarted,
)
from evosaga.orchestrator.engine.state import State, evolve, replay
from evosaga.orchestrator.engine.turns import AheadParked
from evosaga.sagas.definition import Saga, Step
from evosaga.sagas.registry import SagaRegistry

_CLAIMS: Final = frozenset({StepStarted, CompensationStarted})
_DOUBTFUL: Final = frozenset({StepFailed, SagaFailed, SagaResumed})


class UnknownSaga(Exception):
    """This release does not know that saga or version; a newer (or older) worker may."""


class Place(NamedTuple):
    """A place for one attempt, which it has ``since`` then."""

    step: Step
    direction: Direction
    since: float

    @property
    def what(self) -> str:
        return f"{self.step.name}/{self.direction}"


@dataclass(slots=True)
class SagaInstance:
    """Times are on this process's monotonic clock, in seconds."""

    saga_id: UUID
    saga: Saga
    input: Any
    state: State
    correlation_id: str
    causation_id: str | None
    started_at: float
    last_at: float
    """When its last event was committed."""
    doubted_at: dict[str, float] = field(default_factory=dict)
    """When the newest doubtful attempt of a step was recorded."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    released: bool = False
    """True when the status row has no owner until ``next_at``."""
    claim: int | None = None
    """The sequence at which the attempt that is out was claimed."""
    place: Place | None = None
    """The attempt that has a place at the limits of its step."""
    used: tuple[Place, float] | None = None
    """A place whose attempt is over, with the seconds that it took: it is to be given back."""
    has_turn: bool = False
    """For one that was behind another: its turn has come, and it has its key."""
    refused: AheadParked | None = None
    """Why its first step is not to be called."""
    held: SagaEvent | None = None
    """The hold that its row records under that claim, when no worker has tried it since."""

    def apply(self, appended: Appended[State], at: float) -> None:
        """Take in what was just committed; ``at`` is now."""
        if appended.state is not None:
            self.state = appended.state
        else:
            for event in appended.events:
                self.state = evolve(self.state, event)
        self.released = appended.row is not None and appended.row.owner is None
        if appended.events:
            self.claim = self.state.sequence - 1 if self.state.in_flight else None
        for event in appended.events:
            if type(event) in _DOUBTFUL:
                self._note_doubt(event, at)
        self.last_at = at

    def _note_doubt(self, event: SagaEvent, at: float) -> None:
        match event:
            case StepFailed() if event.in_doubt or event.outcome == "unknown":
                self.doubted_at[event.step] = at
            case SagaFailed(direction="forward"):  # a replay looks there before it acts
                self.doubted_at[event.step] = at
            case SagaResumed(redo=redo):
                self.doubted_at |= dict.fromkeys(redo or (), at)
            case _:
                pass

    @staticmethod
    def started(
        registry: SagaRegistry, saga_id: UUID, state: State, correlation_id: str
    ) -> "SagaInstance":
        """A saga whose beginning was committed a moment ago."""
        saga, data = _definition(registry, saga_id, state)
        causation = state.start.command_id if state.start else None
        now = time.monotonic()
        claim = state.sequence - 1 if state.in_flight else None
        return SagaInstance(
            saga_id, saga, data, state, correlation_id, causation, now, now, claim=claim
        )

    @staticmethod
    def rehydrated(
        registry: SagaRegistry, history: Sequence[Recorded], now: datetime
    ) -> "SagaInstance":
        """A saga as its history tells it; ``now`` is the database's time.

        Raises ``UnknownSaga``, ``IllegalTransition`` or pydantic's ``ValidationError``.
        """
        first, state = history[0], replay(recorded.event for recorded in history)
        at = _times(history, now)
        saga, data = _definition(registry, first.saga_id, state)
        clock = time.monotonic() - now.timestamp()
        live = SagaInstance(
            first.saga_id,
            saga,
            data,
            state,
            first.correlation_id,
            first.causation_id,
            started_at=at[0] + clock,
            last_at=at[-1] + clock,
            claim=max((r.sequence for r in history if type(r.event) in _CLAIMS), default=None),
        )
        for recorded, moment in zip(history, at, strict=True):
            live._note_doubt(recorded.event, moment + clock)
        return live

    def reload(self, registry: SagaRegistry, history: Sequence[Recorded]) -> None:
        """Take in a history that others have appended to."""
        fresh = SagaInstance.rehydrated(registry, history, history[-1].recorded_at)
        self.state, self.last_at, self.claim = fresh.state, fresh.last_at, fresh.claim
        self.doubted_at = fresh.doubted_at


def _times(history: Sequence[Recorded], now: datetime) -> list[float]:
    """When each event was committed, on the clock as it is now.

    Nothing happened later than what came after it. Where that is not what was recorded, the
    clock has been put back, and an age would be counted from a moment that is still to come.
    """
    times, latest = [], now.timestamp()
    for recorded in reversed(history):
        latest = min(latest, recorded.recorded_at.timestamp())
        times.append(latest)
    return times[::-1]


def _definition(registry: SagaRegistry, saga_id: UUID, state: State) -> tuple[Saga, Any]:
    start = state.start
    saga = registry.find(start.saga, start.version) if start else None
    if start is None or saga is None:
        name = f"{start.saga} v{start.version}" if start else "a beginning"
        raise UnknownSaga(f"saga {saga_id} needs {name}, which this release does not know")
    return saga, saga.input.model_validate(start.input)
