"""Whatever a step says, in either direction, becomes an event that fits its history."""

import contextvars
from itertools import product
from typing import Any
from uuid import UUID

import pytest

from evosaga.events import trace_context
from evosaga.events.model import CompensationFailed, StepFailed, data_json
from evosaga.events.trace_context import SpanPlace
from evosaga.orchestrator.engine.execution import _enter, context, outcome_event
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.state import evolve, replay
from evosaga.sagas.context import StepContext
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected, Unknown
from tests.support.given_when_then import (
    TRIP,
    Story,
    Told,
    begun,
    events_of,
    parked,
    resumed,
    step,
    turned,
    undo,
)

FORWARD: Story = (begun(), step.out("hotel"))
BACKWARD: Story = (begun(), step.succeeded("hotel"), turned("hotel"), undo.out("hotel"))

OUTCOMES: list[Outcome] = [
    Done(),
    Done({"note": "removed"}),
    Rejected("no_vacancy", "full"),
    Unknown("timeout", "no answer"),
    Held("unreachable", "refused"),
    Held("busy", "later", retry_after=5.0),
    Held("unavailable", "503", in_doubt=True),
]


@pytest.mark.parametrize(
    ("history", "outcome"),
    list(product([FORWARD, BACKWARD], OUTCOMES)),
    ids=lambda part: repr(part) if not isinstance(part, tuple) else f"{len(part)} events",
)
def test_every_outcome_of_a_step_and_of_its_undo_can_be_recorded(
    history: Story, outcome: Outcome
) -> None:
    state = replay(events_of(history))
    assert state.in_flight is not None
    said = outcome_event(state.in_flight, outcome)
    after = evolve(state, said)
    assert after.in_flight is None
    if isinstance(outcome, Held):
        assert after.holds == 1
        assert isinstance(said, StepFailed | CompensationFailed)
        assert said.retry_after_seconds == outcome.retry_after


@pytest.mark.parametrize(
    ("outcome", "doubt"),
    [
        (Rejected("c", "m"), False),
        (Unknown("c", "m"), True),
        (Held("c", "m"), False),
        (Held("c", "m", in_doubt=True), True),
    ],
)
def test_doubt_is_what_the_step_said_it_was(outcome: Outcome, doubt: bool) -> None:
    state = replay(events_of(FORWARD))
    assert state.in_flight is not None
    assert (
        evolve(state, outcome_event(state.in_flight, outcome)).progress("hotel").in_doubt is doubt
    )


def test_a_message_that_postgres_could_not_store_is_made_storable() -> None:
    state = replay(events_of(FORWARD))
    assert state.in_flight is not None
    said = outcome_event(state.in_flight, Rejected("c", "a\0b" + "x" * 9000))
    assert r"\u0000" not in data_json(said)
    assert isinstance(said, StepFailed)
    assert len(said.message) <= 500


def test_a_servers_words_that_utf8_does_not_know_are_made_storable() -> None:
    """``json.loads`` makes a lone surrogate of ``"\\ud800"``, and a server may send that."""
    state = replay(events_of(FORWARD))
    assert state.in_flight is not None
    said = outcome_event(state.in_flight, Rejected("c", "a\ud800b"))
    assert data_json(said)


def test_an_undo_that_is_tried_again_after_a_replay_is_still_in_doubt() -> None:
    """Its first attempts may have had their effect, and a replay does not change that."""
    stuck = [undo.unknown("hotel", n) for n in (1, 2, 3)]
    resumption = (parked("hotel", "compensation"), resumed(), undo.out("hotel", 1))
    told = undoing_context(*BACKWARD[:-1], *stuck, *resumption)
    assert told.attempt == 1
    assert told.in_doubt


def test_the_first_undo_is_not_in_doubt_and_the_second_is() -> None:
    assert not undoing_context(*BACKWARD).in_doubt
    assert undoing_context(*BACKWARD[:-1], undo.lost("hotel"), undo.out("hotel", 2)).in_doubt


def test_a_saga_that_another_one_wakes_is_not_logged_under_its_trace() -> None:
    """A task is begun with the context of whoever begins it, its trace included."""
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    started = begun().model_copy(update={"facts": {trace_context.FACT: given}})
    traced: Story = (started, *FORWARD[1:])

    def here(*stories: Story) -> SpanPlace | None:
        trace_context.incoming.set(given)
        for number, story in enumerate(stories):
            state = replay(events_of(story))
            _enter(SagaInstance(UUID(int=number), TRIP, None, state, "c", None, 0.0, 0.0))
        return trace_context.here()

    at = contextvars.copy_context().run(here, traced)
    assert at is not None
    assert at.trace_id == given.split("-")[1]
    assert contextvars.copy_context().run(here, traced, FORWARD) is None
    assert contextvars.copy_context().run(here, FORWARD) is None


def undoing_context(*told: Told) -> StepContext[Any, Any]:
    """What the undo that is out is told."""
    state = replay(events_of(told))
    assert state.in_flight is not None
    live = SagaInstance(UUID(int=1), TRIP, None, state, "correlation", None, 0.0, 0.0)
    services: Any = None
    return context(live, state.in_flight, services)
