"""A saga's history as periods: attempts, waits, and events that turned it. Pure.

A dependency that is down for an hour leaves a hundred held attempts with the same reason; they
become one period.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal, TypeAlias

from evosaga.events.model import (
    CompensationBegan,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Direction,
    Recorded,
    SagaCancelRequested,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    SagaResumed,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from evosaga.orchestrator.api.pages.step_words import step_word
from evosaga.orchestrator.engine.retries import WORKER_LOST

Ending: TypeAlias = Literal["done", "refused", "unclear", "held", "lost", "out"]
"""How an attempt ended; ``out``: it has not ended."""
MarkKind: TypeAlias = Literal["cancel", "turn", "park", "resume", "done", "undone"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step, or several that were held one after the other.

    ``first`` and ``last`` are the sequences of its first and last event.
    """

    step: str
    direction: Direction
    number: int
    worker: str
    first: int
    last: int
    began: datetime
    ended: datetime | None = None
    ending: Ending = "out"
    code: str = ""
    message: str = ""
    times: int = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that concerns the whole saga."""

    kind: MarkKind
    sequence: int
    at: datetime
    said: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """Attempts in order of their beginning, and the moments between them."""

    attempts: tuple[Attempt, ...] = ()
    marks: tuple[Mark, ...] = ()
    moments: tuple[tuple[int, datetime], ...] = ()
    """Sequence and time of every event with a position of its own."""

    @property
    def workers(self) -> list[str]:
        """The workers that ran attempts, in order of appearance."""
        return list(dict.fromkeys(attempt.worker for attempt in self.attempts))


def attempt_history(history: Sequence[Recorded]) -> AttemptHistory:
    """Build the attempts from a history, which starts at the first event."""
    attempts: list[Attempt] = []
    for attempt in _attempts(history):
        before = attempts[-1] if attempts else None
        if before and _says_the_same(before, attempt):
            attempts[-1] = replace(
                attempt, first=before.first, began=before.began, times=before.times + 1
            )
        else:
            attempts.append(attempt)
    swallowed: set[int] = set()
    for attempt in attempts:
        if attempt.times > 1:
            swallowed.update(range(attempt.first + 1, attempt.last))
    return AttemptHistory(
        attempts=tuple(attempts),
        marks=tuple(mark for recorded in history if (mark := _mark(recorded)) is not None),
        moments=tuple((r.sequence, r.recorded_at) for r in history if r.sequence not in swallowed),
    )


def _attempts(history: Sequence[Recorded]) -> Iterator[Attempt]:
    out: Attempt | None = None
    for recorded in history:
        event, at = recorded.event, recorded.recorded_at
        match event:
            case StepStarted() | CompensationStarted():
                forward = isinstance(event, StepStarted)
                out = Attempt(
                    step=event.step,
                    direction="forward" if forward else "compensation",
                    number=event.attempt,
                    worker=event.worker,
                    first=recorded.sequence,
                    last=recorded.sequence,
                    began=at,
                )
            case (
                StepSucceeded() | StepFailed() | CompensationSucceeded() | CompensationFailed()
            ) if out is not None:
                yield replace(
                    out,
                    last=recorded.sequence,
                    ended=at,
                    ending=_ending(event),
                    code=getattr(event, "code", ""),
                    message=getattr(event, "message", ""),
                )
                out = None
    if out is not None:
        yield out


def _says_the_same(before: Attempt, now: Attempt) -> bool:
    """Whether two consecutive attempts were held for the same reason: one period of waiting."""
    return (
        before.ending == now.ending == "held"
        and (before.step, before.direction) == (now.step, now.direction)
        and before.code == now.code
    )


_ENDINGS: Final[dict[str, Ending]] = {"rejected": "refused", "unknown": "unclear", "held": "held"}


def _ending(event: SagaEvent) -> Ending:
    if isinstance(event, StepFailed | CompensationFailed):
        return "lost" if event.code == WORKER_LOST else _ENDINGS[event.outcome]
    return "done"


def _mark(recorded: Recorded) -> Mark | None:
    event, sequence, at = recorded.event, recorded.sequence, recorded.recorded_at
    match event:
        case SagaCancelRequested():
            return Mark("cancel", sequence, at, f"cancel asked for by {event.by}", _reason(event))
        case CompensationBegan():
            return Mark("turn", sequence, at, "rollback started", event.message)
        case SagaFailed():
            said = f"parked at {step_word(event.step)}: it needs attention"
            return Mark("park", sequence, at, said, event.message)
        case SagaResumed():
            return Mark("resume", sequence, at, f"replayed by {event.by}", _reason(event))
        case SagaCompleted():
            return Mark("done", sequence, at, "completed")
        case SagaCompensated():
            return Mark("undone", sequence, at, "rolled back: nothing is left behind")
    return None


def _reason(event: SagaCancelRequested | SagaResumed) -> str:
    return event.reason or ""
