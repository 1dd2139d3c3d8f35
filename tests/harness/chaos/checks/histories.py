"""What must hold of the log alone: S1-S4, S7, S13, S14, S18.

Each function is one invariant of our list. It yields what violates it, and its first line says
what it holds.
"""

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias
from uuid import UUID

from evosaga.events.model import (
    CompensationBegan,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Recorded,
    SagaCancelRequested,
    SagaFailed,
    SagaResumed,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from tests.harness.chaos.evidence import Evidence, Violation
from tests.support.laws import Chronicle, LawBroken

Check: TypeAlias = "Callable[[Evidence], Iterator[Violation]]"

_CLOSING: Final = ("saga.completed", "saga.compensated", "saga.failed", "saga.rejected")
_STATUS: Final = {"parked": "failed"}


def s1(e: Evidence) -> Iterator[Violation]:
    """S1 The versions of a saga are 0..n, without gap or repetition, and its status row agrees."""
    for saga_id, history in e.histories.items():
        versions = [r.sequence for r in history]
        if versions != list(range(len(versions))):
            yield of_saga(saga_id, "S1", f"its sequences are {versions}")
        row = e.sagas.get(saga_id)
        if row is None:
            yield of_saga(saga_id, "S1", "it has events and no status row")
        elif row["next_sequence"] != len(history):
            yield of_saga(saga_id, "S1", f"{len(history)} events; next is {row['next_sequence']}")
    for saga_id in e.sagas.keys() - e.histories.keys():
        yield of_saga(saga_id, "S1", "it has a status row and no events")


def s2(e: Evidence) -> Iterator[Violation]:
    """S2 Every history obeys the laws, and its status row says what they say."""
    for saga_id, history in e.histories.items():
        start = e.start(saga_id)
        saga = e.registry.find(start.saga, start.version)
        if saga is None:
            yield of_saga(saga_id, "S2", f"nobody knows {start.saga} v{start.version}")
            continue
        told = Chronicle()
        try:
            for recorded in history:
                told = told.told(saga, recorded.event)
        except LawBroken as broken:
            yield of_saga(saga_id, "S2", str(broken))
            continue
        status = e.sagas.get(saga_id, {}).get("status")
        if status != _STATUS.get(told.phase, told.phase):
            yield of_saga(saga_id, "S2", f"its history says {told.phase}, its row {status}")


def s3(e: Evidence) -> Iterator[Violation]:
    """S3 One command, one saga, with the content that was published."""
    commands = Counter(row["command_id"] for row in e.sagas.values())
    for command_id, sagas in commands.items():
        if sagas > 1:
            yield Violation("S3", f"command {command_id}", f"it has {sagas} sagas")
    bodies: dict[str, set[str]] = defaultdict(set)
    for told in e.published:
        if told.kind in ("create", "delete", "conflict"):
            bodies[told.id].add(_hash(json.loads(told.body)))
    for saga_id, row in e.sagas.items():
        published = bodies.get(row["command_id"])
        known = published is not None and saga_id in e.histories
        if known and e.start(saga_id).command_hash not in (published or ()):
            yield of_saga(saga_id, "S3", "it was started with another body than was published")


def s4(e: Evidence) -> Iterator[Violation]:
    """S4 One ending closes a run; after it there is nothing but a replay or cancel of a failure."""
    for saga_id, history in e.histories.items():
        for before, after in itertools.pairwise(history):
            if before.event.type not in _CLOSING:
                continue
            reopened = isinstance(after.event, SagaResumed | SagaCancelRequested)
            if not (isinstance(before.event, SagaFailed) and reopened):
                yield of_saga(saga_id, "S4", f"{after.event.type} follows {before.event.type}")


def s7(e: Evidence) -> Iterator[Violation]:
    """S7 In a run a step succeeds once, is undone once, and is tried as often as it may be."""
    for saga_id, history in e.histories.items():
        start = e.start(saga_id)
        saga = e.registry.find(start.saga, start.version)
        for run in _runs(history):
            ended = Counter(
                (r.event.type, r.event.step)
                for r in run
                if isinstance(r.event, StepSucceeded | CompensationSucceeded)
            )
            for (type_, step), times in ended.items():
                if times > 1:
                    yield of_saga(saga_id, "S7", f"{type_} {step} {times} times in one run")
            lost: Counter[tuple[str, bool]] = Counter()
            for recorded in run:
                event = recorded.event
                if isinstance(event, StepFailed | CompensationFailed) and event.lost:
                    lost[event.step, isinstance(event, StepFailed)] += 1
                if saga is None or not isinstance(event, StepStarted | CompensationStarted):
                    continue
                own = event.attempt - lost[event.step, isinstance(event, StepStarted)]
                if own > (most := saga.step(event.step).retry.attempts):
                    yield of_saga(
                        saga_id, "S7", f"attempt {event.attempt} of {event.step}, of {most}"
                    )


def s13(e: Evidence) -> Iterator[Violation]:
    """S13 What a rolled back saga had to undo is undone, last first."""
    for saga_id, history in e.histories.items():
        if history[-1].event.type != "saga.compensated":
            continue
        wanted = [r.event.steps for r in history if isinstance(r.event, CompensationBegan)]
        undone = tuple(r.event.step for r in history if isinstance(r.event, CompensationSucceeded))
        if wanted != [undone]:
            yield of_saga(saga_id, "S13", f"to undo: {wanted}, undone: {undone}")


def s14(e: Evidence) -> Iterator[Violation]:
    """S14 All that is said of a saga names one organization; one open saga holds a key."""
    for saga_id, row in e.sagas.items():
        if saga_id in e.histories and row["organization_id"] != e.start(saga_id).organization_id:
            yield of_saga(saga_id, "S14", "its status row names another organization")
    for _, fields in e.events:
        told = json.loads(fields["data"])
        saga_id = UUID(told["subject"])
        named = told["data"].get("organization_id")
        if saga_id in e.sagas and named != _text(e.sagas[saga_id]["organization_id"]):
            yield of_saga(saga_id, "S14", f"event {told['id']} names organization {named}")
    holders = Counter(
        row["business_key"]
        for row in e.sagas.values()
        if row["status"] in ("running", "compensating", "failed")
    )
    for key, times in holders.items():
        if times > 1:
            yield Violation("S14", key, f"{times} open sagas hold it")


def s18(e: Evidence) -> Iterator[Violation]:
    """S18 A saga ends under the definition that it began with."""
    for saga_id, row in e.sagas.items():
        if saga_id in e.histories:
            start = e.start(saga_id)
            if (row["saga"], row["version"]) != (start.saga, start.version):
                yield of_saga(saga_id, "S18", f"it became {row['saga']} v{row['version']}")


HISTORIES: Final[Sequence[Check]] = (s1, s2, s3, s4, s7, s13, s14, s18)


def of_saga(saga_id: UUID, law: str, sentence: str) -> Violation:
    return Violation(law, f"saga {saga_id}", sentence, saga_id)


def _runs(history: Sequence[Recorded]) -> list[list[Recorded]]:
    """A history, cut where somebody replayed it."""
    runs: list[list[Recorded]] = [[]]
    for recorded in history:
        if isinstance(recorded.event, SagaResumed):
            runs.append([])
        runs[-1].append(recorded)
    return runs


def _hash(body: dict[str, Any]) -> str:
    content = [body["type"], body["data"]]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: object) -> str | None:
    return None if value is None else str(value)
