"""What was released goes on reading what it once wrote.

``histories/`` holds recorded histories of every released version of every saga. Each is folded
event by event, and wherever a decision or an intent was recorded, today's decider must come to
the same one. A saga that was open during an upgrade therefore goes on as it began. Who changes a
released version instead of adding a new one is stopped here.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from evosaga.events.model import (
    CompensationBegan,
    CompensationStarted,
    SagaCancelRequested,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    StepStarted,
    data_json,
    event_from,
)
from evosaga.events.upcasting import upcast
from evosaga.orchestrator.engine.decider import Idle, Record, Run, advance, decide, intent
from evosaga.orchestrator.engine.state import State, evolve
from evosaga.sagas.definition import Kind, Retry, Saga, Step
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from tests.histories.record import HISTORIES, missing, play
from tests.support.laws import chronicle

CATALOGUE = discover()
FILES = sorted(HISTORIES.glob("*.json"))


@dataclass(frozen=True)
class Recording:
    """A file below ``histories``."""

    saga: str
    version: int
    events: Sequence[dict[str, Any]]

    @staticmethod
    def read(path: Path) -> "Recording":
        content = json.loads(path.read_text())
        return Recording(content["saga"], content["version"], content["events"])


class Incompatible(AssertionError):
    """A released version no longer reads, or no longer does, what it once did."""


def replayed(recording: Recording, registry: SagaRegistry) -> State:
    """Fold the recording, checking each decision. Raises ``Incompatible``."""
    saga = registry.find(recording.saga, recording.version)
    if saga is None:
        raise Incompatible(f"{recording.saga} v{recording.version} is gone")
    state = State()
    for number, line in enumerate(recording.events):
        event = event_from(line["type"], line["data"])
        today = upcast(line["type"], line["data"])
        demand(json.loads(data_json(event)) == today, number, "it is written otherwise")
        if number:
            demand_same_decision(saga, state, event, number)
        else:
            saga.input.model_validate(line["data"]["input"])
        state = evolve(state, event)
    events, _, action = advance(saga, state)
    demand(not events and isinstance(action, Idle), len(recording.events), "it goes on")
    return state


def demand_same_decision(saga: Saga, state: State, event: SagaEvent, number: int) -> None:
    """Decisions and intents follow from what was before; facts come from outside."""
    action = decide(saga, state)
    match event:
        case CompensationBegan() | SagaCompleted() | SagaCompensated() | SagaFailed():
            demand(action == Record(event), number, f"now decides {action}")
        case StepStarted() | CompensationStarted():
            same = isinstance(action, Run) and event == intent(
                action, event.worker, event.lease_seconds
            )
            demand(same, number, f"now decides {action}")
        case SagaCancelRequested():  # while it waits as well as during an attempt
            demand(not isinstance(action, Record), number, f"now decides {action} before it")
        case _:
            fact = not isinstance(action, Record | Run)
            demand(fact, number, f"now decides {action} before it")


def demand(holds: bool, number: int, sentence: str) -> None:
    if not holds:
        raise Incompatible(f"event {number}: {sentence}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_history_goes_on_as_it_was_recorded(path: Path) -> None:
    recording = Recording.read(path)
    state = replayed(recording, CATALOGUE)
    assert state.sequence == len(recording.events)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_history_obeys_the_laws(path: Path) -> None:
    recording = Recording.read(path)
    saga = CATALOGUE.find(recording.saga, recording.version)
    assert saga is not None
    chronicle(saga, [event_from(line["type"], line["data"]) for line in recording.events])


def test_every_version_in_the_catalogue_has_been_recorded() -> None:
    forgotten = [path.name for path, *_ in missing()]
    assert not forgotten, "run: python -m tests.histories.record"


def test_every_version_that_was_recorded_is_still_in_the_catalogue() -> None:
    recorded = {(r.saga, r.version) for r in map(Recording.read, FILES)}
    assert recorded <= set(CATALOGUE.versions)


def test_the_recordings_tell_of_every_type_of_event_and_every_ending() -> None:
    lines = [line["type"] for path in FILES for line in Recording.read(path).events]
    never_in_a_saga_that_began = {"saga.rejected"}
    assert len(set(lines) | never_in_a_saga_that_began) == 14
    endings = {Recording.read(path).events[-1]["type"] for path in FILES}
    assert endings == {"saga.completed", "saga.compensated", "saga.failed"}


def test_a_word_that_cannot_happen_is_not_recorded() -> None:
    saga = CATALOGUE.versions["create-integration", 1]
    with pytest.raises(AssertionError, match="can't happen"):
        play(saga, "rejected done")


# --- the proof that it would notice ------------------------------------------------------------

CREATE = CATALOGUE.versions["create-integration", 1]


class ShortInput(BaseModel, extra="forbid"):
    """An input that lost fields."""

    name: str


class LongInput(CreateIntegration):
    """An input with a new field that old sagas can't have."""

    colour: str


def with_step(name: str, change: Callable[[Step], Step]) -> Saga:
    return replace(CREATE, steps=tuple(change(s) if s.name == name else s for s in CREATE.steps))


INCOMPATIBLE: dict[str, Saga] = {
    "a step renamed": with_step("postgres", lambda s: replace(s, name="database")),
    "a step taken out": replace(CREATE, steps=CREATE.steps[:1] + CREATE.steps[2:]),
    "the last step taken out": replace(CREATE, steps=CREATE.steps[:-1]),
    "a step added": replace(CREATE, steps=(*CREATE.steps, replace(CREATE.steps[-1], name="more"))),
    "steps in another order": replace(
        CREATE, steps=(CREATE.steps[1], CREATE.steps[0], *CREATE.steps[2:])
    ),
    "a compensatable step made retryable": with_step(
        "cache", lambda s: replace(s, kind=Kind.RETRYABLE, undo=None)
    ),
    "a retryable step made the pivot": with_step("notify", lambda s: replace(s, kind=Kind.PIVOT)),
    "fewer attempts": with_step("evolution", lambda s: replace(s, retry=Retry(attempts=2))),
    "more attempts": with_step("evolution", lambda s: replace(s, retry=Retry(attempts=5))),
    "a field taken from the input": replace(CREATE, input=ShortInput),
    "a field demanded of the input": replace(CREATE, input=LongInput),
}


@pytest.mark.parametrize("change", INCOMPATIBLE)
def test_a_released_version_that_is_changed_is_noticed(change: str) -> None:
    changed = registry_of([INCOMPATIBLE[change]])
    mine = [r for r in map(Recording.read, FILES) if r.saga == CREATE.name]
    noticed = [recording for recording in mine if not goes_on(recording, changed)]
    assert noticed


def test_a_version_that_is_dropped_is_noticed() -> None:
    only_new = registry_of([replace(CREATE, version=2)])
    with pytest.raises(Incompatible, match="create-integration v1 is gone"):
        replayed(next(r for r in map(Recording.read, FILES) if r.saga == CREATE.name), only_new)


def test_a_new_version_beside_the_old_is_no_change() -> None:
    both = registry_of([CREATE, replace(INCOMPATIBLE["a step added"], version=2)])
    mine = [r for r in map(Recording.read, FILES) if r.saga == CREATE.name]
    assert all(goes_on(recording, both) for recording in mine)


def goes_on(recording: Recording, registry: SagaRegistry) -> bool:
    try:
        replayed(recording, registry)
    except (AssertionError, KeyError, ValueError):  # an unknown step, an input that is refused
        return False
    return True
