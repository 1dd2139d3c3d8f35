"""What must have been seen at least once, or the run has proved little."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from evosaga.events.model import (
    CompensationFailed,
    CompensationSucceeded,
    Recorded,
    StepFailed,
    StepSucceeded,
)
from tests.harness.chaos.evidence import CREATED, REMOVED, Evidence
from tests.harness.chaos.faults import BASE_POINTS

UNDONE: Final = (
    "create-integration evolution",
    "create-integration postgres",
    "create-integration cache",
    "delete-integration mark",
)


def sometimes(
    e: Evidence, logs: str, struck: Mapping[str, int], flushed_at: Sequence[float]
) -> dict[str, int]:
    """Each thing that should happen now and then, and how often it did."""
    found: dict[str, int] = {}
    resolved = ambiguities(e)
    found["unknown outcome resolved as applied"] = sum(
        resolved[how] for how in resolved if how.startswith("applied")
    )
    found["unknown outcome resolved as not applied"] = sum(
        resolved[how] for how in resolved if how.startswith("not applied")
    )
    found["take-over from a dead worker"] = len(takeovers(e))
    found["version conflict, the loser walks away"] = logs.count('"version_conflict"')
    found["403 on a create, and the instance is ours"] = _forbidden(e, ours=True)
    found["403 on a create, and it is a stranger's"] = _forbidden(e, ours=False)
    found["orphan landed late and was removed"] = _late_and_removed(e)
    found["cache write refused"] = _failed(e, "cache", "removed")
    found["duplicate of a command"] = _duplicates(e)
    found["dead letter"] = len(e.dead)
    undone = Counter(
        f"{e.start(saga_id).saga} {r.event.step}"
        for saga_id, history in e.histories.items()
        for r in history
        if isinstance(r.event, CompensationSucceeded)
    )
    found |= {f"compensation of {step}": undone[step] for step in UNDONE}
    ids = Counter(json.loads(fields["data"])["id"] for _, fields in e.events)
    found["event told twice by the relay"] = sum(times > 1 for times in ids.values())
    started = [e.histories[saga_id][0].recorded_at.timestamp() for saga_id in e.histories]
    found["Redis lost its data, and commands went on"] = sum(
        any(at > flushed for at in started) for flushed in flushed_at
    )
    points = Counter[str]()
    for point, times in struck.items():
        points[point.partition(":")[0]] += times
    return found | {f"sync point {point}": points[point] for point in BASE_POINTS}


def ambiguities(e: Evidence) -> Counter[str]:
    """Attempts at Evolution whose outcome was unknown, by what it turned out to be."""
    found: Counter[str] = Counter()
    for history in e.histories.values():
        doubt = 0
        for recorded in history:
            event = recorded.event
            if getattr(event, "step", None) not in ("evolution", *_LOOKS):
                continue
            if isinstance(event, StepFailed | CompensationFailed):
                doubt += event.outcome == "unknown" or getattr(event, "in_doubt", False)
            elif doubt and isinstance(event, StepSucceeded | CompensationSucceeded):
                found[_resolution(event)] += doubt
                doubt = 0
        if doubt:
            found["still unknown: parked, or under way"] += doubt
    return found


def _resolution(event: StepSucceeded | CompensationSucceeded) -> str:
    note = event.result.get("note")
    if isinstance(event, StepSucceeded) and event.result.get("adopted"):
        return "applied: found there and adopted"
    if note in ("removed", "landed_late_and_removed"):
        return "applied: removed in the end"
    if note == "no_effect":
        return "not applied: nothing to undo"
    if note == "not_ours":
        return "not applied: the place is a stranger's"
    if note == "already_absent":
        return "applied: gone when looked for"
    return "not applied: done by another attempt"


def takeovers(e: Evidence) -> list[tuple[str, Recorded]]:
    """Attempts that were lost with their workers, and the event with which somebody took over."""
    return [
        (r.event.message.split()[1], r)
        for history in e.histories.values()
        for r in history
        if isinstance(r.event, StepFailed | CompensationFailed) and r.event.code == "worker_lost"
    ]


def _forbidden(e: Evidence, *, ours: bool) -> int:
    """Creates that met their own name: whose it was tells the birthmark that lived there."""
    found, lives = 0, dict[str, str | None]()
    for entry in sorted(e.journal, key=lambda x: x.answered_at or x.received_at):
        name = entry.name or ""
        if entry.operation == "create" and entry.kind == "request" and entry.status == 403:
            found += (lives.get(name) in e.tokens) == ours
        if entry.applied in CREATED:
            lives[name] = entry.token_hash
        elif entry.applied in REMOVED:
            lives.pop(name, None)
    return found


def _late_and_removed(e: Evidence) -> int:
    return sum(
        isinstance(r.event, StepSucceeded | CompensationSucceeded)
        and r.event.result.get("note") == "landed_late_and_removed"
        for history in e.histories.values()
        for r in history
    )


def _failed(e: Evidence, step: str, code: str) -> int:
    return sum(
        isinstance(r.event, StepFailed) and (r.event.step, r.event.code) == (step, code)
        for history in e.histories.values()
        for r in history
    )


def _duplicates(e: Evidence) -> int:
    bodies = Counter(fields.get("data", b"") for _, fields in e.commands)
    return sum(times - 1 for times in bodies.values() if times > 1)


_LOOKS: Final = (
    "look", "look-after-a-minute", "look-after-five-minutes", "look-after-half-an-hour"
)  # fmt: skip
