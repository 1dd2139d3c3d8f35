"""The view model of one saga's page: headline, timeline, events in words. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from evosaga.events.model import Direction, Recorded, SagaRejected, SagaStarted, public_data
from evosaga.orchestrator.api.pages.attempts import AttemptHistory, attempt_history
from evosaga.orchestrator.api.pages.step_words import step_word
from evosaga.orchestrator.api.pages.time_axis import duration
from evosaga.orchestrator.api.pages.timeline import Timeline, timeline
from evosaga.orchestrator.engine.decider import can_compensate
from evosaga.orchestrator.engine.repeated_holds import with_hold
from evosaga.orchestrator.engine.state import OPEN, State
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.queries.timeline import detail, steps_of
from evosaga.sagas.definition import Saga
from evosaga.sagas.explainer import Note

KINDS: Final = {
    "compensatable": "can be undone",
    "pivot": "point of no return",
    "retryable": "retried until it succeeds",
}
_NEWEST: Final = 200
"""The most events listed; the rest is behind a link."""


@dataclass(frozen=True, slots=True)
class Line:
    """One event in words."""

    sequence: int
    at: datetime
    type: str
    step: str
    direction: Direction | None
    said: str
    data: str
    tone: str
    day: str = ""
    """Its date, where that differs from the line above it."""


@dataclass(frozen=True, slots=True)
class SagaPageView:
    """A saga's page, except for what has to be queried."""

    headline: str
    timeline: Timeline
    chronicle: AttemptHistory
    lines: Sequence[Line]
    earlier: int
    """The number of events that are not listed."""
    asked: Sequence[tuple[str, str]]
    """The command's data."""


def saga_view(
    view: SagaView,
    history: Sequence[Recorded],
    definition: Saga | None,
    now: datetime,
    note: Note,
    *,
    everything: bool = False,
) -> SagaPageView:
    """``definition`` is None when this release no longer knows the saga's version.

    ``note``: what the saga's domain says of a step's result.
    """
    steps = definition.steps if definition else ()
    shown = with_hold(view, history)
    stories = steps_of(shown, [step.name for step in steps], note)
    told = attempt_history(shown)
    listed = history if everything else history[-_NEWEST:]
    return SagaPageView(
        headline=headline(view, history),
        timeline=timeline(
            told,
            stories,
            {step.name: KINDS[step.kind] for step in steps},
            now=now,
            over=view.over,
            next_at=view.next_at,
        ),
        chronicle=told,
        lines=_dated([_line(recorded, note) for recorded in reversed(listed)]),
        earlier=len(history) - len(listed),
        asked=_asked(history),
    )


def headline(view: SagaView, history: Sequence[Recorded]) -> str:
    """The saga's state or outcome, in one sentence."""
    at = step_word(view.step) if view.step else "the start"
    spent = duration((view.updated_at - view.created_at).total_seconds())
    match view.status:
        case "completed":
            return f"Completed in {spent}."
        case "compensated":
            return f"Rolled back after {spent}; nothing is left behind."
        case "rejected":
            return "Refused before anything was changed."
        case "failed":
            way = "undoing " if view.direction == "compensation" else ""
            return f"Stopped at {way}{at}: it needs attention."
        case "compensating":
            return f"Rolling back{f', undoing {at}' if view.step else ''}."
        case _ if len(history) <= 1 and view.step is None:
            return "Accepted, and not begun yet."
        case _:
            again = f", attempt {view.attempt}" if view.attempt and view.attempt > 1 else ""
            return f"Running, at {at}{again}."


def _asked(history: Sequence[Recorded]) -> list[tuple[str, str]]:
    first = history[0].event if history else None
    if not isinstance(first, SagaStarted | SagaRejected):
        return []
    return [(name, _text(value)) for name, value in first.input.items() if value is not None]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _dated(lines: Sequence[Line]) -> list[Line]:
    """Add the date to the first line of each day when the lines span several days."""
    days = [f"{line.at.astimezone(UTC):%b} {line.at.astimezone(UTC).day}" for line in lines]
    if len(set(days)) < 2:
        return list(lines)
    above = ["", *days]
    return [
        replace(line, day=day if day != before else "")
        for line, day, before in zip(lines, days, above, strict=False)
    ]


def _line(recorded: Recorded, note: Note) -> Line:
    event = recorded.event
    data = json.dumps(public_data(event), ensure_ascii=False, indent=1, sort_keys=True)
    backward = event.type.startswith("compensation.")
    return Line(
        sequence=recorded.sequence,
        at=recorded.recorded_at,
        type=event.type,
        step=getattr(event, "step", None) or "",
        direction="compensation" if backward else "forward",
        said=detail(event, note),
        data=data,
        tone=_tone(event.type, getattr(event, "outcome", None)),
    )


def _tone(type_: str, outcome: str | None) -> str:
    if outcome == "held":
        return "held"
    if type_ in ("step.failed", "compensation.failed", "saga.failed", "saga.rejected"):
        return "failed"
    if type_.startswith("compensation.") or type_ == "saga.compensated":
        return "undo"
    return "done" if type_ in ("step.succeeded", "saga.completed") else "plain"


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a cancel would do. ``undo`` are the steps, in that order."""

    allowed: bool
    headline: str
    undo: Sequence[str] = ()


def cancellable(definition: Saga | None, state: State) -> bool:
    """Whether to show the button: a saga that is being undone needs none."""
    undoing = state.status == "compensating"
    return not undoing and cancellation(definition, state).allowed


def cancellation(definition: Saga | None, state: State) -> Cancellation:
    """The plan, by the rules by which a cancel is accepted or refused."""
    if state.status not in OPEN:
        return Cancellation(False, f"It is {state.status}, so there is nothing left to cancel.")
    if definition is None:
        said = "This release does not know its definition, so it can't say what to undo."
        return Cancellation(False, said)
    if state.direction == "compensation":
        said = "It is rolling back already; a cancel gives it new attempts to undo the rest."
        return Cancellation(True, said, state.to_compensate)
    if not can_compensate(definition, state):
        said = "It is past its point of no return: it goes on until it is completed."
        return Cancellation(False, said)
    undo = steps_to_undo(definition, state)
    if state.in_flight is not None:
        said = "The attempt that is out is finished first. Then it stops and undoes what was done."
        return Cancellation(True, said, undo)
    if not undo:
        return Cancellation(True, "It stops. Nothing has been done yet, so nothing is undone.")
    return Cancellation(True, "It stops, and undoes what was done, last first.", undo)


def steps_to_undo(definition: Saga, state: State) -> list[str]:
    """The steps that compensation would undo, last first; includes the one being attempted."""
    out = state.in_flight.step if state.in_flight else None
    return [
        step.name
        for step in reversed(definition.steps)
        if step.undo is not None
        and (
            state.progress(step.name).done or state.progress(step.name).in_doubt or step.name == out
        )
    ]
