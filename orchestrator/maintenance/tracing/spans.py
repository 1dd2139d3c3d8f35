"""From a saga's history to spans: the saga is one, and each of its attempts is another. Pure."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from evosaga.events import trace_context
from evosaga.events.trace_context import SpanPlace

_CLAIMS: Final = {"step.started": "forward", "compensation.started": "compensation"}
_OUTCOMES: Final = {
    "step.succeeded": "forward",
    "step.failed": "forward",
    "compensation.succeeded": "compensation",
    "compensation.failed": "compensation",
}
_ENDS: Final = {
    "saga.completed": "completed",
    "saga.compensated": "compensated",
    "saga.failed": "failed",
    "saga.rejected": "rejected",
}


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row of ``evosaga.saga_events``, in any release's words."""

    saga_id: UUID
    sequence: int
    type: str
    data: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class Span:
    """``parent`` is None for a saga that nothing else has caused in its trace."""

    name: str
    place: SpanPlace
    parent: SpanPlace | None
    began: datetime
    ended: datetime
    failed: bool = False
    attributes: Mapping[str, str | int] = field(default_factory=dict)


def spans_of(history: Sequence[StoredEvent], fresh: AbstractSet[int]) -> list[Span]:
    """The spans that end with the events whose sequences are ``fresh``.

    ``history`` is all of one saga, in order. One that does not begin with a beginning has none.
    """
    if not history or history[0].type not in ("saga.started", "saga.rejected"):
        return []
    start = history[0]
    saga, given = str(start.data.get("saga", "saga")), _given(start)
    root = trace_context.of_saga(start.saga_id, given)
    about = {"evosaga.saga": saga, "evosaga.saga_id": str(start.saga_id)}
    found, claims = [], dict[tuple[str, str], StoredEvent]()
    for event in history:
        step = str(event.data.get("step", ""))
        if (direction := _CLAIMS.get(event.type)) is not None:
            claims[step, direction] = event
        elif (direction := _OUTCOMES.get(event.type)) is not None:
            claim = claims.get((step, direction))
            if claim is not None and event.sequence in fresh:
                found.append(_attempt(saga, root, about, claim, event))
        elif event.type in _ENDS and event.sequence in fresh:
            parent = trace_context.read(given) if given else None
            found.append(_whole(saga, root, parent, about, start, event))
    return found


def _given(start: StoredEvent) -> str | None:
    facts = start.data.get("facts")
    return trace_context.valid(facts.get(trace_context.FACT)) if isinstance(facts, dict) else None


def _attempt(
    saga: str, root: SpanPlace, about: Mapping[str, str], claim: StoredEvent, event: StoredEvent
) -> Span:
    direction, step = _OUTCOMES[event.type], str(event.data["step"])
    outcome = "done" if event.type.endswith(".succeeded") else str(event.data.get("outcome"))
    attributes: dict[str, str | int] = {
        **about,
        "evosaga.step": step,
        "evosaga.direction": direction,
        "evosaga.attempt": int(claim.data.get("attempt", 0)),
        "evosaga.worker": str(claim.data.get("worker", "")),
        "evosaga.outcome": outcome,
    }
    if code := event.data.get("code"):
        attributes["evosaga.code"] = str(code)
    undo = "undo " if direction == "compensation" else ""
    id_ = trace_context.span_id(f"{claim.saga_id}:{claim.sequence}")
    place = SpanPlace(root.trace_id, id_)
    failed = outcome in ("rejected", "unknown")
    return Span(f"{saga} {undo}{step}", place, root, claim.at, event.at, failed, attributes)


def _whole(
    saga: str,
    root: SpanPlace,
    parent: SpanPlace | None,
    about: Mapping[str, str],
    start: StoredEvent,
    event: StoredEvent,
) -> Span:
    attributes: dict[str, str | int] = {**about, "evosaga.status": _ENDS[event.type]}
    if code := event.data.get("code"):
        attributes["evosaga.code"] = str(code)
    failed = event.type != "saga.completed"
    return Span(saga, root, parent, start.at, event.at, failed, attributes)
