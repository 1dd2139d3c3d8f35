"""Histories told in a few words: ``given(what happened).then_runs(what comes next)``.

``step`` and ``undo`` tell attempts, each as the events that record it::

    given(begun(), step.succeeded("hotel"), step.rejected("car"))
        .then_turns("hotel", because="step_failed")
        .then_runs("hotel", attempt=1, direction="compensation")

Nothing here touches a clock, a network or a file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

import pytest
from pydantic import BaseModel

from evosaga.events.model import (
    CompensationBegan,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Direction,
    FailureOutcome,
    SagaCancelRequested,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    SagaResumed,
    SagaStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from evosaga.orchestrator.engine.decider import Idle, Record, Run, attempt_lost, decide
from evosaga.orchestrator.engine.state import DEADLINE, IllegalTransition, State, evolve, replay
from evosaga.sagas.definition import Retry, Saga, compensatable, pivot, retryable
from evosaga.sagas.outcome import Done, Outcome

Told: TypeAlias = SagaEvent | list[SagaEvent]
Story: TypeAlias = tuple[Told, ...]
WORKER: Final = "worker-1"


class AnyInput(BaseModel):
    """Input of sagas whose input does not matter."""


async def nothing(_: Any) -> Outcome:
    """An effect that the decider never calls."""
    return Done()


async def admit_nobody(*_: Any) -> list[Any]:
    """An admission that is never asked."""
    return []


TRIP: Final = Saga(
    name="book-a-trip",
    version=1,
    command="trip.book",
    input=AnyInput,
    admit=admit_nobody,
    steps=(
        compensatable("hotel", do=nothing, undo=nothing, retry=Retry(attempts=3, first=0.2)),
        compensatable("car", do=nothing, undo=nothing, retry=Retry(attempts=2, first=0.2)),
        pivot("pay", do=nothing, retry=Retry(attempts=2, first=1.0)),
        retryable("mail", do=nothing, retry=Retry(attempts=2, first=1.0)),
    ),
)
"""Two compensatable steps, the point of no return, and one step after it."""


def begun(
    saga: Saga = TRIP, command_id: str = "command-1", deadline: float | None = None
) -> SagaStarted:
    return SagaStarted(
        saga=saga.name,
        version=saga.version,
        command=saga.command,
        command_id=command_id,
        command_hash="hash",
        business_key="key",
        input={},
        deadline_seconds=deadline,
    )


@dataclass(frozen=True)
class Attempts:
    """Attempts in one direction, each as the events that record it."""

    direction: Direction

    def out(self, name: str, n: int = 1) -> SagaEvent:
        """Attempt ``n`` is claimed and nothing is known of it yet."""
        make = StepStarted if self.direction == "forward" else CompensationStarted
        return make(step=name, attempt=n, worker=WORKER, lease_seconds=50.0)

    def succeeded(self, name: str, n: int = 1, **result: Any) -> list[SagaEvent]:
        make = StepSucceeded if self.direction == "forward" else CompensationSucceeded
        return [self.out(name, n), make(step=name, attempt=n, result=result)]

    def rejected(self, name: str, n: int = 1) -> list[SagaEvent]:
        return self._failed(name, n, "rejected", "refused")

    def unknown(self, name: str, n: int = 1) -> list[SagaEvent]:
        return self._failed(name, n, "unknown", "timeout", in_doubt=True)

    def held(
        self, name: str, n: int = 1, *, retry_after: float | None = None, in_doubt: bool = False
    ) -> list[SagaEvent]:
        return self._failed(
            name, n, "held", "unreachable", in_doubt=in_doubt, retry_after_seconds=retry_after
        )

    def lost(self, name: str, n: int = 1) -> list[SagaEvent]:
        """The worker died in the middle."""
        state = evolve(replace_begun(self.direction, name), self.out(name, n))
        return [self.out(name, n), attempt_lost(state)]

    def _failed(
        self, name: str, n: int, outcome: FailureOutcome, code: str, **more: Any
    ) -> list[SagaEvent]:
        make = StepFailed if self.direction == "forward" else CompensationFailed
        if make is CompensationFailed:
            more.pop("in_doubt", None)
        failed = make(
            step=name, attempt=n, outcome=outcome, code=code, message="as told by a test", **more
        )
        return [self.out(name, n), failed]


step: Final = Attempts("forward")
undo: Final = Attempts("compensation")


def replace_begun(direction: Direction, name: str) -> State:
    """A state in which an attempt of that step in that direction may be claimed."""
    return replay([begun()] if direction == "forward" else [begun(), turned(name)])


def turned(*steps: str, because: str = "step_failed") -> CompensationBegan:
    return CompensationBegan.model_validate(
        {"because": because, "code": "refused", "message": "m", "steps": steps}
    )


def parked(name: str, direction: Direction = "forward") -> SagaFailed:
    return SagaFailed(step=name, direction=direction, code="timeout", message="m")


def resumed(*gone: str) -> SagaResumed:
    """A replay; ``gone``: what a look found gone."""
    return SagaResumed(by="a person", redo=gone or None)


def cancelled() -> SagaCancelRequested:
    return SagaCancelRequested(by="a person")


def out_of_time() -> SagaCancelRequested:
    """The saga's own deadline has passed, and somebody with a clock has noticed."""
    return SagaCancelRequested(by=DEADLINE, reason="900 s are over")


def events_of(told: Iterable[Told]) -> list[SagaEvent]:
    """One flat list."""
    flat: list[SagaEvent] = []
    for one in told:
        flat += one if isinstance(one, list) else [one]
    return flat


def given(*told: Told, saga: Saga = TRIP) -> "Given":
    """A saga to which all this has happened."""
    return Given(saga, events_of(told))


@dataclass
class Given:
    """A saga with a history. Each ``then_…`` checks the one decision that follows from it."""

    saga: Saga
    history: list[SagaEvent]
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = replay(self.history)

    def when(self, *told: Told) -> "Given":
        """And then this happens."""
        return Given(self.saga, [*self.history, *events_of(told)])

    def then_runs(
        self,
        name: str,
        *,
        attempt: int,
        direction: Direction = "forward",
        after: float = 0.0,
    ) -> Self:
        """An attempt of that step follows, ``after`` seconds give or take a quarter."""
        action = decide(self.saga, self.state)
        assert isinstance(action, Run), action
        assert (action.step.name, action.direction, action.attempt) == (name, direction, attempt)
        assert after * 0.75 - 0.001 <= action.delay <= after * 1.25 + 0.001, action.delay
        return self

    def then_undoes(self, name: str, *, attempt: int = 1, after: float = 0.0) -> Self:
        return self.then_runs(name, attempt=attempt, direction="compensation", after=after)

    def then_records(self, kind: type[SagaEvent], **fields: Any) -> "Given":
        """A decision of that kind is recorded, with at least these fields; the saga after it."""
        action = decide(self.saga, self.state)
        assert isinstance(action, Record), action
        assert isinstance(action.event, kind), action.event
        said = action.event.model_dump()
        assert {name: said[name] for name in fields} == fields
        return self.when(action.event)

    def then_turns(self, *steps: str, because: str = "step_failed") -> "Given":
        """It turns round to undo these, first to last."""
        return self.then_records(CompensationBegan, because=because, steps=steps)

    def then_parks(self, name: str, direction: Direction = "forward") -> "Given":
        return self.then_records(SagaFailed, step=name, direction=direction).then_rests("parked")

    def then_completes(self) -> "Given":
        return self.then_records(SagaCompleted).then_rests("over")

    def then_is_compensated(self) -> "Given":
        return self.then_records(SagaCompensated).then_rests("over")

    def then_rests(self, why: str) -> "Given":
        assert decide(self.saga, self.state) == Idle(why)  # type: ignore[arg-type]
        return self

    def then_refuses(self, told: Told) -> Self:
        """That can't happen to this saga, and trying changes nothing."""
        before = replay(self.history)
        [event] = events_of([told])
        with pytest.raises(IllegalTransition, match=r"does not fit|no attempt is in flight"):
            evolve(self.state, event)
        assert self.state == before
        return self


def delays(saga: Saga, histories: Sequence[Story]) -> list[float]:
    """How long each of these histories waits before its next attempt."""
    found = []
    for told in histories:
        action = decide(saga, replay(events_of(told)))
        assert isinstance(action, Run), action
        found.append(action.delay)
    return found
