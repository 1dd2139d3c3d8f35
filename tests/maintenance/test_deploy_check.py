"""Which changes of a definition would strand a saga that is under way, told without a database."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from pydantic import BaseModel

from evosaga.events.model import Recorded
from evosaga.orchestrator.maintenance.deploy_check import unfit
from evosaga.orchestrator.maintenance.history_scan import ScannedHistory
from evosaga.sagas.definition import Retry, Saga, Step, compensatable, pivot, retryable
from tests.support.given_when_then import (
    TRIP,
    Story,
    begun,
    events_of,
    nothing,
    parked,
    resumed,
    step,
    turned,
    undo,
)

HOTEL, CAR, PAY, MAIL = TRIP.steps
AT_CAR: Story = (begun(), step.succeeded("hotel"), step.unknown("car"))
AT_MAIL: Story = (
    begun(),
    step.succeeded("hotel"),
    step.succeeded("car"),
    step.succeeded("pay"),
    step.rejected("mail"),
    parked("mail"),
)
GOING_BACK: Story = (
    begun(),
    step.succeeded("hotel"),
    step.succeeded("car"),
    step.rejected("pay"),
    turned("car", "hotel"),
    undo.out("car"),
)
INSURANCE = compensatable("insurance", do=nothing, undo=nothing)


def told(story: Story) -> ScannedHistory:
    saga_id = UUID(int=7)
    return ScannedHistory(
        saga_id,
        tuple(
            Recorded(
                saga_id=saga_id,
                sequence=n,
                recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
                correlation_id="c",
                causation_id=None,
                event=event,
            )
            for n, event in enumerate(events_of(story))
        ),
    )


def with_steps(*steps: Step) -> Saga:
    return replace(TRIP, steps=steps)


@pytest.mark.parametrize("story", [(begun(),), AT_CAR, AT_MAIL, GOING_BACK])
def test_the_definition_that_they_began_under_fits(story: Story) -> None:
    assert unfit(TRIP, told(story)) is None


@pytest.mark.parametrize("story", [(begun(),), AT_CAR, AT_MAIL, GOING_BACK])
def test_other_limits_and_times_fit(story: Story) -> None:
    patient = [replace(s, retry=Retry(attempts=99), timeout=9.0) for s in TRIP.steps]
    assert unfit(with_steps(*patient), told(story)) is None


def test_a_step_that_is_added_after_what_has_begun_fits() -> None:
    after_car = with_steps(HOTEL, CAR, INSURANCE, PAY, MAIL)
    assert unfit(after_car, told(AT_CAR)) is None
    at_the_end = with_steps(*TRIP.steps, retryable("thank", do=nothing))
    assert unfit(at_the_end, told(AT_MAIL)) is None


@pytest.mark.parametrize(
    ("steps", "story", "why"),
    [
        ((HOTEL, PAY, MAIL), AT_CAR, "its history has a step 'car', and the definition has none"),
        (
            (HOTEL, replace(CAR, name="limousine"), PAY, MAIL),
            AT_CAR,
            "its history has a step 'car', and the definition has none",
        ),
        (
            (INSURANCE, *TRIP.steps),
            AT_CAR,
            "the definition has step 'insurance' before 'hotel', which has begun",
        ),
        (
            (HOTEL, CAR, INSURANCE, PAY, MAIL),
            AT_MAIL,
            "the definition has step 'insurance' before 'pay', which has begun",
        ),
        (
            (CAR, HOTEL, PAY, MAIL),
            (begun(), step.succeeded("hotel")),
            "the definition has step 'car' before 'hotel', which has begun",
        ),
        (
            (HOTEL, pivot("car", do=nothing), retryable("pay", do=nothing), MAIL),
            GOING_BACK,
            "step 'car' has to be undone, and the definition can't",
        ),
    ],
)
def test_a_change_in_place_that_the_history_does_not_fit_is_found(
    steps: Sequence[Step], story: Story, why: str
) -> None:
    assert unfit(with_steps(*steps), told(story)) == why


def test_a_parked_saga_is_held_against_what_a_replay_of_it_would_do() -> None:
    """At rest it needs no step; replayed it does."""
    assert unfit(TRIP, told(AT_MAIL)) is None
    assert unfit(with_steps(HOTEL, CAR, PAY), told(AT_MAIL)) is not None


def test_a_replayed_saga_with_a_step_to_do_again_fits() -> None:
    assert unfit(TRIP, told((*AT_MAIL, resumed("hotel")))) is None


def test_an_input_that_the_definition_no_longer_takes_is_found() -> None:
    class Stricter(BaseModel):
        passport: str

    stricter = replace(TRIP, input=Stricter)
    assert unfit(stricter, told(AT_CAR)) == "its input is not what the definition wants (passport)"


def test_a_history_that_makes_no_sense_is_found() -> None:
    twice = (begun(), step.succeeded("hotel"), step.succeeded("hotel")[1])
    found = unfit(TRIP, told(twice))
    assert found == "its history is one that this definition could not have written"


def test_a_history_that_this_release_cannot_read_is_found() -> None:
    assert (
        unfit(TRIP, ScannedHistory(UUID(int=7), unreadable="an event it does not know")) is not None
    )
