"""What a replay would do, step by step, for everything that a look at the world can find."""

from itertools import product

import pytest

from evosaga.events.model import SagaCompensated, SagaCompleted, SagaRejected
from evosaga.orchestrator.commands.replay_plan import Refused, ReplayPlan, replay_plan
from evosaga.orchestrator.engine.state import State, evolve, replay
from evosaga.sagas.outcome import Finding, Sighting
from tests.support.given_when_then import (
    TRIP,
    Story,
    begun,
    events_of,
    parked,
    resumed,
    step,
    turned,
    undo,
)

PARKED: Story = (
    begun(),
    step.succeeded("hotel"),
    step.succeeded("car"),
    step.succeeded("pay"),
    step.rejected("mail"),
    parked("mail"),
)
STUCK: Story = (
    begun(),
    step.succeeded("hotel"),
    step.succeeded("car"),
    step.rejected("pay"),
    turned("car", "hotel"),
    undo.rejected("car", 1),
    undo.rejected("car", 2),
    parked("car", "compensation"),
)
COMPENSATED: Story = (
    begun(),
    step.rejected("hotel"),
    turned(),
    SagaCompensated(code="refused", message="m"),
)


def state_of(story: Story) -> State:
    return replay(events_of(story))


def planned(story: Story, **seen: Sighting) -> ReplayPlan:
    findings = {name: Finding(sight, f"{name} looks {sight}") for name, sight in seen.items()}
    return replay_plan(TRIP, state_of(story), findings)


def actions(plan: ReplayPlan) -> dict[str, str]:
    return {line.step: line.action for line in plan.lines}


@pytest.mark.parametrize(
    ("sight", "of_a_done_step", "of_the_due_step"),
    [
        (Sighting.THERE, "reuse", "adopt"),
        (Sighting.ABSENT, "redo", "redo"),
        (Sighting.HALF, "undo first", "undo first"),
        (Sighting.FOREIGN, "blocked", "blocked"),
        (Sighting.UNKNOWN, "blocked", "blocked"),
        (None, "reuse", "redo"),
    ],
)
def test_each_finding_leads_to_one_action(
    sight: Sighting | None, of_a_done_step: str, of_the_due_step: str
) -> None:
    seen = {} if sight is None else {"car": sight, "mail": sight}
    plan = planned(PARKED, **seen)
    assert actions(plan) == {
        "hotel": "reuse",
        "car": of_a_done_step,
        "pay": "reuse",
        "mail": of_the_due_step,
    }
    evidence = {line.step: line.evidence for line in plan.lines}
    assert all(evidence.values()), "every line says how it is known"
    if sight is not None:
        assert evidence["car"] == f"car looks {sight}"


def test_what_was_done_and_is_gone_is_done_again_and_nothing_else() -> None:
    plan = planned(PARKED, hotel=Sighting.ABSENT, car=Sighting.THERE, mail=Sighting.ABSENT)
    assert plan.redo == ("hotel",)
    assert plan.allowed
    assert plan.headline == ("it goes on at step mail with fresh attempts, after doing hotel again")


def test_a_strangers_thing_in_the_place_refuses_the_replay_and_says_which() -> None:
    plan = planned(PARKED, hotel=Sighting.ABSENT, car=Sighting.FOREIGN)
    assert (plan.allowed, plan.code) == (False, "blocked")
    assert plan.headline == "refused: step car is blocked: car looks foreign"


def test_a_look_that_found_out_nothing_concludes_nothing() -> None:
    """Nothing is done again because a server did not answer, and the replay is not refused."""
    plan = planned(PARKED, hotel=Sighting.UNKNOWN, car=Sighting.ABSENT)
    assert (plan.allowed, plan.redo) == (True, ("car",))
    assert "it is unknown now what is there (step hotel: hotel looks unknown)" in plan.headline


def test_a_saga_parked_on_its_way_back_stays_on_it_and_does_nothing_again() -> None:
    plan = planned(STUCK, hotel=Sighting.ABSENT, car=Sighting.FOREIGN)
    assert actions(plan) == {"car": "undo first", "hotel": "undo first"}
    assert [line.step for line in plan.lines] == ["car", "hotel"], "in the order of the undoing"
    assert (plan.allowed, plan.redo) == (True, ())
    assert plan.headline.startswith("it stays on its way back and undoes car and hotel")


def test_what_is_undone_already_stays_undone() -> None:
    half_way = (
        *STUCK,
        resumed(),
        undo.succeeded("car"),
        undo.rejected("hotel", 1),
        parked("hotel", "compensation"),
    )
    assert actions(planned(half_way)) == {"car": "reuse", "hotel": "undo first"}


def test_a_saga_that_was_rolled_back_starts_anew_with_all_steps_to_do() -> None:
    plan = planned(COMPENSATED, hotel=Sighting.ABSENT)
    assert plan.anew
    assert plan.allowed
    assert set(actions(plan).values()) == {"redo"}
    assert plan.redo == (), "a saga of its own has nothing to do again"


def test_a_saga_that_was_rolled_back_and_would_be_refused_now_is_blocked_with_that_reason() -> None:
    refused = Refused("integration_exists", "there is one already")
    plan = replay_plan(TRIP, state_of(COMPENSATED), {}, refused)
    assert (plan.allowed, plan.code) == (False, "integration_exists")
    assert plan.headline == "refused: there is one already"
    assert set(actions(plan).values()) == {"blocked"}


REJECTED = SagaRejected(
    **begun().model_dump(exclude={"type", "facts", "deadline_seconds", "behind", "follow_up"}),
    code="duplicate",
    message="there is one",
)


@pytest.mark.parametrize(
    ("story", "word"),
    [
        ((begun(),), "running"),
        ((begun(), step.out("hotel")), "running"),
        (STUCK[:5], "compensating"),
        ((*PARKED[:4], step.succeeded("mail"), SagaCompleted()), "completed"),
        ((REJECTED,), "rejected"),
    ],
)
def test_a_saga_that_is_neither_parked_nor_rolled_back_is_refused_with_a_reason(
    story: Story, word: str
) -> None:
    plan = planned(story)
    assert (plan.allowed, plan.code, plan.lines) == (False, "not_replayable", ())
    assert plan.headline.startswith("refused: the saga ")
    assert word in plan.headline


def test_a_definition_that_this_release_does_not_have_is_left_to_one_that_has_it() -> None:
    plan = replay_plan(None, state_of(PARKED), {})
    assert plan.allowed
    assert plan.lines == ()


def test_whatever_is_found_the_recorded_replay_is_one_that_the_decider_takes() -> None:
    """Every combination of findings: what the plan wants done again, the fold accepts."""
    state = state_of(PARKED)
    taken = 0
    for sights in product([None, *Sighting], repeat=len(TRIP.steps)):
        seen = {s.name: look for s, look in zip(TRIP.steps, sights, strict=True) if look}
        plan = planned(PARKED, **seen)
        assert plan.allowed is (Sighting.FOREIGN not in sights)
        if plan.allowed:
            after = evolve(state, resumed(*plan.redo))
            assert not any(after.progress(name).done for name in plan.redo)
            taken += 1
    assert taken == 5**4
