"""Why a saga is where it is: one answer for every place it can be in, none of them a riddle."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from evosaga.events.model import Recorded, SagaCompensated, SagaCompleted
from evosaga.orchestrator.engine.decider import Run, advance
from evosaga.orchestrator.engine.projection import status_row
from evosaga.orchestrator.engine.state import replay as fold
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.queries.waiting import held_step
from evosaga.orchestrator.queries.why import Diagnosis, SagaFacts, Workers, why
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.definition import Saga
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.evolution.answers import SERVER_UNKNOWN
from evosaga.sagas.whatsapp.evolution.circuit_breaker import BreakerState
from tests.support.given_when_then import (
    TRIP,
    WORKER,
    Story,
    begun,
    cancelled,
    events_of,
    parked,
    step,
    turned,
    undo,
)

T0 = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
SAGA = UUID("0197a0de-0000-7000-8000-000000000003")
OTHER = UUID("0197a0de-0000-7000-8000-000000000004")
ALIVE = Workers(alive=frozenset({WORKER}), knows={WORKER: frozenset({(TRIP.name, 1)})})
NOBODY = Workers(silent=frozenset({WORKER}))
STRANGERS = Workers(alive=frozenset({"new"}), knows={"new": frozenset({(TRIP.name, 2)})})


def case(*story: Any, after: float = 1.0, company: Workers = ALIVE, **more: Any) -> SagaFacts:
    """A saga to which this happened, an event a second, seen ``after`` seconds later."""
    events = events_of(story)
    history = [
        Recorded(
            saga_id=SAGA,
            sequence=n,
            recorded_at=T0 + timedelta(seconds=n),
            correlation_id="c",
            causation_id=None,
            event=event,
        )
        for n, event in enumerate(events)
    ]
    state = fold(events)
    _, _, action = advance(TRIP, state)
    told = status_row(TRIP, state, action, more.pop("owner", None))
    last = history[-1].recorded_at
    view = SagaView(
        saga_id=SAGA,
        saga=TRIP.name,
        version=1,
        status=told.status,
        business_key="key",
        organization_id=None,
        instance_name=None,
        command_id="command-1",
        step=told.step,
        direction=told.direction,
        attempt=told.attempt,
        code=told.code,
        message=told.message,
        existing_instance=None,
        behind=None,
        created_at=T0,
        updated_at=last,
        next_at=None,
        owner=told.owner,
        sequence=state.sequence,
    )
    saga: Saga | None = more.pop("saga", TRIP)
    return SagaFacts(view, saga, history, company, last + timedelta(seconds=after), **more)


def said(answer: Diagnosis) -> str:
    return " ".join([answer.headline, *answer.details])


BEFORE_MAIL: Story = (
    begun(),
    step.succeeded("hotel"),
    step.succeeded("car"),
    step.succeeded("pay"),
)


def test_an_attempt_that_is_out_names_the_worker_and_until_when_it_may_take() -> None:
    answer = why(case(begun(), step.unknown("hotel"), step.out("hotel", 2), after=12))
    assert answer.headline == f"Worker {WORKER} is at step hotel right now (attempt 2 of 3)."
    assert "at it for 12 s, and has 40 s" in said(answer)
    assert "The attempt before ended unknown" in said(answer)
    assert answer.next_at == T0 + timedelta(seconds=3 + 40)
    assert answer.in_flight, "that is a time limit and no next try"
    assert answer.cure is None


@pytest.mark.parametrize(
    ("company", "word"),
    [
        (replace(ALIVE, alive=frozenset({"other"}), silent=frozenset({WORKER})), "gone silent"),
        (replace(ALIVE, alive=frozenset({"other"})), "has left"),
    ],
)
def test_an_attempt_whose_worker_is_gone_is_taken_over_by_another(
    company: Workers, word: str
) -> None:
    answer = why(case(begun(), step.out("hotel"), company=company))
    assert word in answer.headline
    assert "Another one takes over" in said(answer)


def test_attempts_that_were_lost_with_workers_are_not_said_to_be_the_steps_own() -> None:
    before = (begun(), step.lost("hotel", 1), step.unknown("hotel", 2), step.lost("hotel", 3))
    out = why(case(*before, step.out("hotel", 4)))
    assert "(attempt 2 of 3, 2 more lost with their workers)" in out.headline
    waits = why(case(*before, step.lost("hotel", 4), step.unknown("hotel", 5)))
    assert "before attempt 3 of 3, 3 more lost with their workers" in waits.headline


@pytest.mark.fault("b15")
def test_a_saga_that_a_worker_stumbled_over_says_so_and_that_the_fault_is_ours() -> None:
    fine = case(begun(), step.unknown("hotel"))
    message = "it failed in a worker (3 times now): KeyError at orchestrator/engine.py:1"
    answer = why(replace(fine, view=replace(fine.view, code="stumbled", message=message)))
    assert answer.headline == f"It is set aside: {message}."
    assert "tried again by itself after growing pauses" in said(answer)
    assert "it waits before attempt 2 of 3" in said(answer)
    assert answer.cure is not None
    assert answer.cure.startswith("report it")


def test_a_held_step_says_on_what_since_when_and_that_it_costs_nothing() -> None:
    told = case(begun(), *[step.held("hotel", retry_after=30.0)] * 3, after=60 * 7 - 4)
    answer = why(told)
    assert answer.headline == "It waits: as told by a test."
    assert "Step hotel has been held for 7 min, 3 times" in said(answer)
    assert "costs no attempt" in said(answer)


def test_a_held_step_is_due_when_the_server_asked_for() -> None:
    answer = why(case(begun(), step.held("hotel", retry_after=30.0)))
    assert answer.next_at == T0 + timedelta(seconds=2 + 30)
    assert not answer.in_flight


def test_what_the_breaker_says_of_the_server_is_said_too() -> None:
    shut = BreakerState("open", 90.0, "no answer", 4.0)
    servers: Any = {"default": SimpleNamespace(state=shut)}
    answer = why(case(begun(), step.held("hotel"), explain=explainer(servers)))
    assert "in trouble for 90 s: no answer." in said(answer)


@pytest.mark.parametrize(
    ("story", "what_then"),
    [
        ((begun(), step.unknown("hotel")), "the saga is rolled back"),
        ((*BEFORE_MAIL, step.unknown("mail")), "parked for a person"),
    ],
)
def test_a_step_that_backs_off_says_how_many_attempts_are_left_and_what_then(
    story: Story, what_then: str
) -> None:
    answer = why(case(*story, after=0.01))
    assert answer.headline.startswith("It waits before attempt 2 of ")
    assert f"when all have failed {what_then}" in said(answer).replace("it is parked", "parked")
    assert answer.next_at is not None
    assert answer.next_at > T0


def test_without_a_worker_that_is_the_first_thing_said_and_how_to_start_one() -> None:
    answer = why(case(begun(), step.held("hotel"), company=NOBODY))
    assert answer.headline == "Nothing happens: no worker is alive."
    assert "When one is: it waits: as told by a test." in said(answer)
    assert answer.cure == "start a worker: evosaga worker"
    assert answer.next_at is None


@pytest.mark.fault("m7")
def test_a_version_that_no_living_worker_has_waits_and_says_so() -> None:
    told = case(begun(), step.held("hotel", retry_after=1.0), after=600, company=STRANGERS)
    answer = why(told)
    assert answer.headline == "No living worker knows book-a-trip v1."
    assert "It is due since 10 min, and no worker has taken it." in said(answer)
    assert answer.cure == "run a worker of a release that has book-a-trip v1"


@pytest.mark.fault("m6")
def test_a_release_that_does_not_know_the_definition_says_who_does() -> None:
    known = why(case(begun(), step.held("hotel"), saga=None))
    assert known.headline == "This release does not know book-a-trip v1."
    assert "A living worker has that definition" in said(known)
    unknown = why(case(begun(), step.held("hotel"), saga=None, company=STRANGERS))
    assert "None of the 1 living workers has that definition." in said(unknown)
    silent = replace(STRANGERS, knows={})
    assert "None of" not in said(why(case(begun(), saga=None, company=silent)))


def test_overdue_with_workers_about_means_that_they_may_have_no_room() -> None:
    answer = why(case(begun(), step.held("hotel", retry_after=1.0), after=600))
    assert "may have no room left" in said(answer)
    assert answer.cure is not None
    assert "evosaga worker" in answer.cure


def test_one_that_its_owner_is_about_to_take_up_is_not_called_overdue() -> None:
    answer = why(case(begun(), step.held("hotel", retry_after=1.0), after=600, owner=WORKER))
    assert "no worker has taken it" not in said(answer)


def test_a_saga_that_is_rolled_back_says_why_and_what_is_left() -> None:
    story: Story = (
        begun(),
        step.succeeded("hotel"),
        step.rejected("car"),
        turned("hotel"),
        undo.held("hotel"),
    )
    answer = why(case(*story))
    assert "The undo of step hotel has been held" in said(answer)
    assert "rolled back because m. Left to undo: hotel." in said(answer)


def test_a_cancel_that_came_too_late_is_mentioned() -> None:
    answer = why(case(*BEFORE_MAIL, step.unknown("mail"), cancelled()))
    assert "A cancel was asked for after its point of no return" in said(answer)


def test_a_deadline_that_still_counts_is_mentioned() -> None:
    first = begun().model_copy(update={"deadline_seconds": 602.0})
    before = why(case(first, step.held("hotel")))
    assert "within 10 min, it is rolled back by itself" in said(before)
    after = why(case(first, *BEFORE_MAIL[1:], step.held("mail")))
    assert "rolled back" not in said(after)


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_saga_behind_another_names_it_and_the_cure_when_that_is_stuck(status: str) -> None:
    told = case(begun(), step.held("hotel"))
    ahead = replace(told.view, saga_id=OTHER, status=status, step="car")
    answer = why(replace(told, ahead=ahead))
    assert str(OTHER) in answer.headline
    assert (answer.cure is not None) is (status == "failed")
    done = why(replace(told, ahead=replace(ahead, status="completed")))
    assert str(OTHER) not in said(done), "it waits for that one no more"


def test_a_parked_saga_says_where_why_and_the_two_things_to_do() -> None:
    answer = why(case(*BEFORE_MAIL, step.rejected("mail"), parked("mail"), after=7200))
    assert answer.headline == "Parked: step mail could not be finished: m."
    assert "parked for 2 h" in said(answer)
    assert "keeps its business key" in said(answer)
    assert "past its point of no return" in said(answer)
    assert answer.cure is not None
    assert f"evosaga replay {SAGA} --plan" in answer.cure
    assert "cancel" not in answer.cure


def test_a_saga_parked_on_its_way_back_says_what_is_left_to_undo() -> None:
    story: Story = (
        begun(),
        step.succeeded("hotel"),
        step.rejected("car"),
        turned("hotel"),
        undo.rejected("hotel"),
        parked("hotel", "compensation"),
    )
    answer = why(case(*story))
    assert answer.headline == "Parked: step hotel could not be undone: m."
    assert "Still to undo: hotel." in said(answer)
    assert answer.cure is not None
    assert f"evosaga cancel {SAGA}" in answer.cure


def test_a_completed_saga_waits_for_nothing() -> None:
    answer = why(case(*BEFORE_MAIL, step.succeeded("mail"), SagaCompleted(), after=180))
    assert answer == Diagnosis("It is completed, 3 min ago: every step is done.")


def test_a_compensated_saga_says_what_was_undone_and_how_to_try_again() -> None:
    story: Story = (
        begun(),
        step.succeeded("hotel"),
        step.rejected("car"),
        turned("hotel"),
        undo.succeeded("hotel"),
        SagaCompensated(code="refused", message="the car is gone"),
    )
    answer = why(case(*story))
    assert answer.headline.startswith("It was rolled back: ")
    assert "Undone, in this order: hotel." in said(answer)
    assert answer.cure is not None
    assert f"evosaga replay {SAGA}" in answer.cure


def test_a_rejected_saga_says_what_is_in_the_way() -> None:
    told = case(begun())
    view = replace(told.view, status="rejected", message="there is one", existing_instance="wa-1")
    answer = why(replace(told, view=view))
    assert answer.headline == "It was refused before anything was touched: there is one."
    assert answer.cure == "see what is in the way: evosaga status wa-1"


@pytest.mark.fault("b15", "m8")
def test_a_history_that_this_release_cannot_read_is_said_to_be_set_aside() -> None:
    told = case(begun(), step.held("hotel"))
    unread = why(replace(told, history=None))
    assert unread.headline.startswith("It is set aside: its history has an event of a type")
    assert told.history is not None
    nonsense = why(replace(told, history=[*told.history, told.history[-1]]))
    assert "an event that this release's definition could not have written" in nonsense.headline
    assert "other sagas go on" in said(nonsense)


def test_a_step_that_the_definition_does_not_have_is_said_to_be_set_aside() -> None:
    other = replace(TRIP, steps=TRIP.steps[2:])
    answer = why(case(begun(), step.out("hotel"), saga=other))
    assert answer.headline.startswith("It is set aside")


@pytest.mark.parametrize(("waits", "rolled_back"), [("evolution", True), ("pair", False)])
def test_a_server_that_was_taken_away_is_said_to_have_nothing_only_where_nothing_is(
    waits: str, rolled_back: bool
) -> None:
    before = ["evolution", "postgres", "cache", "notify"] if waits == "pair" else []
    out, held = step.held(waits)
    held = held.model_copy(update={"code": SERVER_UNKNOWN})
    told = [begun(CREATE_INTEGRATION), *(e for name in before for e in step.succeeded(name))]
    _, state, action = advance(CREATE_INTEGRATION, fold([*told, out, held]))
    assert isinstance(action, Run)
    case: Any = SimpleNamespace(view=SimpleNamespace(saga=CREATE_INTEGRATION.name), history=None)
    said = explainer().held(held_step(case, state, action)).details
    assert any("Nothing was sent" in sentence for sentence in said) is rolled_back
