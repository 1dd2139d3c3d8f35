"""M8: what an older release wrote is read as it was meant, what a newer one wrote is not guessed.

Fields of events are only ever added, with a default that means what their absence meant.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import pytest
from pydantic import ValidationError

from evosaga.events.model import Recorded, SagaEvent, data_json, event_from
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.sagas.registry import registry_of
from tests.support.given_when_then import TRIP, Story, begun, events_of, parked, resumed, step

EVENTS: list[type[Any]] = list(get_args(SagaEvent))

FIRST_RELEASE: dict[str, dict[str, Any]] = {
    "saga.started": {
        "saga": "s", "version": 1, "command": "c", "command_id": "i", "command_hash": "h",
        "business_key": "k", "input": {"a": 1}, "facts": {"b": 2},
    },
    "saga.rejected": {
        "saga": "s", "version": 1, "command": "c", "command_id": "i", "command_hash": "h",
        "business_key": "k", "input": {}, "code": "c", "message": "m", "existing_instance": "e",
    },
    "step.started": {"step": "s", "attempt": 1, "worker": "w", "lease_seconds": 5.0},
    "step.succeeded": {
        "step": "s", "attempt": 1, "result": {"a": 1}, "follow_up": {"type": "t", "data": {}},
    },
    "step.failed": {
        "step": "s", "attempt": 1, "outcome": "held", "code": "c", "message": "m",
        "in_doubt": True, "retry_after_seconds": 1.0,
    },
    "compensation.began": {
        "because": "cancelled", "step": "s", "code": "c", "message": "m", "steps": ["a", "b"],
    },
    "compensation.started": {"step": "s", "attempt": 1, "worker": "w", "lease_seconds": 5.0},
    "compensation.succeeded": {"step": "s", "attempt": 1, "result": {}},
    "compensation.failed": {
        "step": "s", "attempt": 1, "outcome": "rejected", "code": "c", "message": "m",
    },
    "saga.completed": {},
    "saga.compensated": {"code": "c", "message": "m"},
    "saga.failed": {"step": "s", "direction": "forward", "code": "c", "message": "m"},
    "saga.resumed": {"by": "a", "reason": "r"},
    "saga.cancel_requested": {"by": "a"},
}  # fmt: skip
"""Every event with every field that the first release wrote. Never edited, only added to."""


def type_of(event: type[Any]) -> str:
    return str(event.model_fields["type"].default)


def test_every_event_of_today_is_either_of_the_first_release_or_newer() -> None:
    assert set(FIRST_RELEASE) <= {type_of(event) for event in EVENTS}, "none may be removed"


@pytest.mark.parametrize("type_", FIRST_RELEASE)
def test_what_the_first_release_wrote_is_read_and_means_the_same(type_: str) -> None:
    event = event_from(type_, FIRST_RELEASE[type_])
    assert json.loads(data_json(event)).items() >= FIRST_RELEASE[type_].items()


@pytest.mark.parametrize("event", EVENTS, ids=type_of)
def test_what_was_added_since_has_a_default(event: type[Any]) -> None:
    known = FIRST_RELEASE.get(type_of(event))
    if known is None:
        return
    added = event.model_fields.keys() - known.keys() - {"type"}
    needed = {name for name in added if event.model_fields[name].is_required()}
    assert not needed, "an old history could not be read: give it a default"


@pytest.mark.parametrize("type_", FIRST_RELEASE)
def test_a_field_of_a_newer_release_is_not_dropped_in_silence(type_: str) -> None:
    with pytest.raises(ValidationError):
        event_from(type_, {**FIRST_RELEASE[type_], "foreseen": 1})


def test_an_event_type_of_a_newer_release_is_not_skipped() -> None:
    with pytest.raises(ValidationError):
        event_from("step.foreseen", {})


def test_a_step_that_is_looked_at_again_is_in_doubt_since_it_was_parked_or_replayed() -> None:
    """However old the doubt is decides how long its effect may still come in late."""
    story: Story = (
        begun(),
        step.succeeded("hotel"),
        step.succeeded("car"),
        step.succeeded("pay"),
        step.rejected("mail"),
        parked("mail"),
        resumed("car"),
    )
    t0 = datetime(2026, 1, 1, tzinfo=UTC)
    history = [
        Recorded(
            saga_id=UUID(int=1),
            sequence=n,
            recorded_at=t0 + timedelta(seconds=n),
            correlation_id="c",
            causation_id=None,
            event=event,
        )
        for n, event in enumerate(events_of(story))
    ]
    live = SagaInstance.rehydrated(registry_of([TRIP]), history, history[-1].recorded_at)
    assert live.doubted_at["car"] == pytest.approx(live.last_at)
    assert live.doubted_at["mail"] == pytest.approx(live.last_at - 1)
    assert "hotel" not in live.doubted_at
