"""A saga's history as people read it: a line an event, and a row a step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias

from evosaga.events.model import (
    CompensationBegan,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Recorded,
    SagaEvent,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from evosaga.sagas.explainer import Note, no_note

StepState: TypeAlias = Literal[
    "waiting", "running", "done", "held", "failed", "undoing", "undone", "undo failed"
]


@dataclass(frozen=True, slots=True)
class StepTimeline:
    """How one step went. ``note`` is what is worth knowing about it."""

    name: str
    state: StepState = "waiting"
    attempts: int = 0
    undo_attempts: int = 0
    began_at: datetime | None = None
    ended_at: datetime | None = None
    note: str = ""

    @property
    def seconds(self) -> float | None:
        """From the first attempt to the last outcome; None before."""
        if self.began_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.began_at).total_seconds()

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "step": self.name,
            "state": self.state,
            "attempts": self.attempts,
            "undo_attempts": self.undo_attempts,
            "seconds": self.seconds,
            "note": self.note or None,
        }


def steps_of(
    history: Iterable[Recorded], names: Sequence[str] = (), note: Note = no_note
) -> list[StepTimeline]:
    """The steps in the order they began; ``names`` adds those that are still to come.

    ``note``: what the saga's domain says of a result, here and below.
    """
    steps = {name: StepTimeline(name) for name in names}
    for recorded in history:
        event = recorded.event
        name = getattr(event, "step", None)
        if name is not None and not isinstance(event, CompensationBegan):
            before = steps.get(name, StepTimeline(name))
            steps[name] = _after(before, event, recorded.recorded_at, note)
    return list(steps.values())


def _after(step: StepTimeline, event: SagaEvent, at: datetime, note: Note) -> StepTimeline:
    match event:
        case StepStarted(attempt=attempt):
            began = step.began_at or at
            kept = step.note if step.state in ("failed", "held") else ""
            return replace(step, state="running", attempts=attempt, began_at=began, note=kept)
        case StepSucceeded():
            return replace(step, state="done", ended_at=at, note=note(event.result))
        case StepFailed(outcome=outcome):
            state: StepState = "held" if outcome == "held" else "failed"
            return replace(step, state=state, ended_at=at, note=event.message)
        case CompensationStarted(attempt=attempt):
            return replace(step, state="undoing", undo_attempts=attempt)
        case CompensationSucceeded():
            return replace(step, state="undone", ended_at=at, note=note(event.result))
        case CompensationFailed():
            return replace(step, state="undo failed", ended_at=at, note=event.message)
    return step


def undone(history: Iterable[Recorded]) -> list[str]:
    """The steps that were undone, in that order."""
    return [r.event.step for r in history if isinstance(r.event, CompensationSucceeded)]


def event_line(recorded: Recorded, note: Note = no_note) -> str:
    """One event on one line: when, what, where, and why."""
    event = recorded.event
    at = recorded.recorded_at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    step = getattr(event, "step", None) or ""
    said = detail(event, note)
    return f"{recorded.sequence:>3}  {at}  {event.type:<22}  {step:<10}  {said}".rstrip()


def detail(event: SagaEvent, note: Note = no_note) -> str:
    """What an event has to say beyond its type and step."""
    match event:
        case StepStarted() | CompensationStarted():
            again = f"attempt {event.attempt}, " if event.attempt > 1 else ""
            return f"{again}worker {event.worker}"
        case StepSucceeded() | CompensationSucceeded():
            return note(event.result)
        case StepFailed() | CompensationFailed():
            return f"{event.outcome}: {event.message}"
        case CompensationBegan():
            return f"to undo: {', '.join(event.steps) or 'nothing'}"
    if event.type in ("saga.started", "saga.rejected"):
        named = f"{getattr(event, 'saga', '')} v{getattr(event, 'version', '')}"
        return f"{named}: {said}" if (said := getattr(event, "message", "")) else named
    return str(getattr(event, "message", None) or getattr(event, "reason", None) or "")
