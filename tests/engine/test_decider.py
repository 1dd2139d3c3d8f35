"""The rules of the decider, one sentence a test.

The table in ``orchestrator/decider.py`` is the theory; every cell of it is a test here. A saga
is told in events, and the test says which one decision follows from them.
"""

import dataclasses
from itertools import pairwise

import pytest

from evosaga.events.model import (
    CompensationSucceeded,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaRejected,
    StepFailed,
    StepSucceeded,
)
from evosaga.orchestrator.engine.decider import (
    Idle,
    Run,
    advance,
    attempt_lost,
    can_compensate,
    deadline_seconds,
    decide,
    intent,
)
from evosaga.orchestrator.engine.state import IllegalTransition, State, replay
from evosaga.sagas.definition import Retry, Saga, compensatable, retryable
from tests.support.given_when_then import (
    TRIP,
    Story,
    admit_nobody,
    begun,
    cancelled,
    delays,
    events_of,
    given,
    nothing,
    out_of_time,
    parked,
    resumed,
    step,
    turned,
    undo,
)

BEFORE_PAY: Story = (begun(), step.succeeded("hotel"), step.succeeded("car"))
BEFORE_MAIL: Story = (*BEFORE_PAY, step.succeeded("pay"))
HOTEL_IS_OUT: Story = (begun(), step.out("hotel"))
UNDOING: Story = (*BEFORE_PAY, step.rejected("pay"), turned("car", "hotel"))


class TestGoingForward:
    def test_a_saga_begins_with_its_first_step(self) -> None:
        given(begun()).then_runs("hotel", attempt=1)

    def test_a_step_that_is_done_is_followed_by_the_next_without_delay(self) -> None:
        given(begun(), step.succeeded("hotel")).then_runs("car", attempt=1)

    def test_a_saga_whose_steps_are_all_done_is_completed(self) -> None:
        given(*BEFORE_MAIL, step.succeeded("mail")).then_completes()

    def test_while_an_attempt_is_out_nothing_is_decided(self) -> None:
        given(*HOTEL_IS_OUT).then_rests("in flight")

    def test_a_command_that_was_refused_is_the_whole_story(self) -> None:
        beginning = begun().model_dump(
            exclude={"type", "facts", "deadline_seconds", "behind", "follow_up"}
        )
        refused = SagaRejected(**beginning, code="duplicate", message="there is one already")
        given(refused).then_rests("over")

    def test_a_saga_without_a_beginning_has_nothing_to_decide(self) -> None:
        with pytest.raises(IllegalTransition, match=r"saga\.started"):
            decide(TRIP, State())

    def test_the_intent_says_who_does_what_and_for_how_long(self) -> None:
        action = decide(TRIP, replay([begun()]))
        assert isinstance(action, Run)
        claim = intent(action, "worker-7", 50.0)
        assert (claim.type, claim.step, claim.attempt) == ("step.started", "hotel", 1)
        assert (claim.worker, claim.lease_seconds) == ("worker-7", 50.0)


class TestACompensatableStep:
    def test_that_is_rejected_undoes_the_steps_before_it_and_not_itself(self) -> None:
        given(begun(), step.succeeded("hotel"), step.rejected("car")).then_turns("hotel")

    def test_whose_outcome_is_unknown_is_tried_again(self) -> None:
        given(begun(), step.unknown("hotel", 1)).then_runs("hotel", attempt=2, after=0.2)

    def test_that_used_up_its_attempts_in_doubt_is_undone_with_the_steps_before_it(self) -> None:
        story: Story = (
            begun(),
            step.succeeded("hotel"),
            step.unknown("car", 1),
            step.unknown("car", 2),
        )
        given(*story).then_turns("car", "hotel")

    def test_that_is_rejected_after_a_doubtful_attempt_is_undone_as_well(self) -> None:
        story: Story = (
            begun(),
            step.succeeded("hotel"),
            step.unknown("car", 1),
            step.rejected("car", 2),
        )
        given(*story).then_turns("car", "hotel")

    def test_that_was_held_after_sending_something_is_undone_as_well(self) -> None:
        story: Story = (begun(), step.held("hotel", in_doubt=True), step.rejected("hotel"))
        given(*story).then_turns("hotel")

    def test_that_is_rejected_first_of_all_leaves_nothing_to_undo(self) -> None:
        given(begun(), step.rejected("hotel")).then_turns().then_is_compensated()

    def test_that_succeeds_at_last_is_in_doubt_no_more(self) -> None:
        state = given(begun(), step.unknown("hotel", 1), step.succeeded("hotel", 2)).state
        assert state.progress("hotel").done
        assert not state.progress("hotel").in_doubt


class TestThePivot:
    def test_that_is_rejected_undoes_the_steps_before_it(self) -> None:
        given(*BEFORE_PAY, step.rejected("pay")).then_turns("car", "hotel")

    def test_that_is_rejected_while_in_doubt_parks_the_saga(self) -> None:
        given(*BEFORE_PAY, step.unknown("pay", 1), step.rejected("pay", 2)).then_parks("pay")

    def test_that_is_rejected_after_being_held_in_doubt_parks_the_saga(self) -> None:
        story: Story = (*BEFORE_PAY, step.held("pay", in_doubt=True), step.rejected("pay"))
        given(*story).then_parks("pay")

    def test_whose_outcome_is_unknown_is_tried_again(self) -> None:
        given(*BEFORE_PAY, step.unknown("pay", 1)).then_runs("pay", attempt=2, after=1.0)

    def test_that_used_up_its_attempts_parks_the_saga(self) -> None:
        given(*BEFORE_PAY, step.unknown("pay", 1), step.unknown("pay", 2)).then_parks("pay")


class TestARetryableStep:
    def test_that_is_rejected_parks_the_saga(self) -> None:
        given(*BEFORE_MAIL, step.rejected("mail")).then_parks("mail")

    def test_whose_outcome_is_unknown_is_tried_again(self) -> None:
        given(*BEFORE_MAIL, step.unknown("mail", 1)).then_runs("mail", attempt=2, after=1.0)

    def test_that_used_up_its_attempts_parks_the_saga(self) -> None:
        given(*BEFORE_MAIL, step.unknown("mail", 1), step.unknown("mail", 2)).then_parks("mail")


class TestACompensation:
    def test_undoes_last_things_first_and_ends_compensated(self) -> None:
        (
            given(*BEFORE_PAY, step.rejected("pay"))
            .then_turns("car", "hotel")
            .then_undoes("car")
            .when(undo.succeeded("car"))
            .then_undoes("hotel")
            .when(undo.succeeded("hotel"))
            .then_is_compensated()
        )

    @pytest.mark.parametrize("failed", [undo.rejected, undo.unknown])
    def test_that_fails_in_whatever_way_is_tried_again(self, failed: type) -> None:
        given(*UNDOING, failed("car", 1)).then_undoes("car", attempt=2, after=0.2)

    @pytest.mark.parametrize("failed", [undo.rejected, undo.unknown])
    def test_that_used_up_its_attempts_parks_the_saga(self, failed: type) -> None:
        story: Story = (*UNDOING, undo.unknown("car", 1), failed("car", 2))
        given(*story).then_parks("car", "compensation")

    def test_says_at_the_end_why_it_began(self) -> None:
        story = given(begun(), step.rejected("hotel")).then_turns()
        story.then_records(SagaCompensated, code="refused", message="as told by a test")

    def test_never_runs_for_steps_that_cannot_be_undone(self) -> None:
        run = Run(TRIP.step("pay"), "compensation", 1)
        with pytest.raises(AssertionError, match="only compensatable steps"):
            _ = run.effect


class TestHeld:
    def test_burns_no_attempt(self) -> None:
        given(begun(), step.held("hotel", 1)).then_runs("hotel", attempt=1, after=0.5)

    def test_burns_no_attempt_however_often(self) -> None:
        story: Story = (
            begun(),
            step.unknown("hotel", 1),
            *(step.held("hotel", 2) for _ in range(50)),
        )
        given(*story).then_runs("hotel", attempt=2, after=30.0)

    def test_burns_no_attempt_of_a_compensation_either(self) -> None:
        story: Story = (*UNDOING, *(undo.held("car", 1) for _ in range(50)))
        given(*story).then_undoes("car", after=30.0)

    def test_backs_off_to_half_a_minute_and_no_further(self) -> None:
        waits = delays(TRIP, [(begun(), *[step.held("hotel")] * n) for n in range(1, 60)])
        bare = [min(30.0, 0.5 * 2.0**n) for n in range(59)]
        for wait, plain in zip(waits, bare, strict=True):
            assert 0.75 * plain <= wait <= 1.25 * plain

    def test_starts_again_with_a_short_wait_once_something_else_happened(self) -> None:
        story: Story = (begun(), *[step.held("hotel", 1)] * 9, step.unknown("hotel", 1))
        given(*story, step.held("hotel", 2)).then_runs("hotel", attempt=2, after=0.5)

    @pytest.mark.parametrize("seconds", [0.0, 0.25, 7.0, 300.0])
    def test_waits_exactly_as_long_as_the_dependency_asked(self, seconds: float) -> None:
        for story in (
            (begun(), step.held("hotel", retry_after=seconds)),
            (*UNDOING, undo.held("car", retry_after=seconds)),
        ):
            assert delays(TRIP, [story]) == [seconds]

    def test_leaves_a_step_out_of_doubt_unless_it_says_otherwise(self) -> None:
        assert not given(begun(), step.held("hotel")).state.progress("hotel").in_doubt
        doubtful = given(begun(), step.held("hotel", in_doubt=True))
        assert doubtful.state.progress("hotel").in_doubt


class TestALostWorker:
    def test_is_followed_by_the_next_attempt_at_once(self) -> None:
        given(begun(), step.lost("hotel", 1)).then_runs("hotel", attempt=2)

    def test_is_followed_by_the_next_compensation_at_once(self) -> None:
        given(*UNDOING, undo.lost("car", 1)).then_undoes("car", attempt=2)

    def test_that_follows_another_is_made_good_after_growing_pauses(self) -> None:
        lost = [step.lost("hotel", n) for n in range(1, 5)]
        for many, pause in ((2, 0.2), (3, 0.6), (4, 1.8)):
            given(begun(), *lost[:many]).then_runs("hotel", attempt=many + 1, after=pause)

    def test_burns_none_of_the_steps_own_attempts(self) -> None:
        told: Story = (begun(), step.lost("hotel", 1), step.unknown("hotel", 2))
        told = (*told, step.lost("hotel", 3), step.lost("hotel", 4), step.unknown("hotel", 5))
        last = given(*told).then_runs("hotel", attempt=6, after=0.6)
        last.when(step.unknown("hotel", 6)).then_turns("hotel")

    def test_burns_none_of_the_attempts_of_a_compensation_either(self) -> None:
        told = given(*UNDOING, *(undo.lost("car", n) for n in range(1, 6)))
        told = told.when(undo.unknown("car", 6)).then_undoes("car", attempt=7, after=0.2)
        told.when(undo.unknown("car", 7)).then_parks("car", "compensation")

    @pytest.mark.fault("b16")
    def test_ends_a_step_that_kills_its_worker_each_time(self) -> None:
        nine = given(begun(), *(step.lost("hotel", n) for n in range(1, 10)))
        nine.then_turns("hotel")
        five = given(*UNDOING, *(undo.lost("car", n) for n in range(1, 6)))
        five.then_undoes("car", attempt=6, after=0.2 * 3**3)
        five.when(undo.lost("car", 6)).then_parks("car", "compensation")

    def test_of_an_older_release_goes_on_counting_as_it_was_meant(self) -> None:
        before = [
            told.model_copy(update={"lost": None}) if isinstance(told, StepFailed) else told
            for told in events_of(step.lost("hotel", n) for n in (1, 2, 3))
        ]
        given(begun(), *before[:4]).then_runs("hotel", attempt=3)
        given(begun(), *before).then_turns("hotel")

    def test_is_forgiven_by_a_replay(self) -> None:
        told = given(*BEFORE_PAY, *(step.lost("pay", n) for n in range(1, 7))).then_parks("pay")
        again = told.when(resumed(), *(step.lost("pay", n) for n in range(1, 6)))
        again.then_runs("pay", attempt=6, after=5.0)

    def test_leaves_the_step_in_doubt(self) -> None:
        assert given(begun(), step.lost("hotel")).state.progress("hotel").in_doubt

    def test_on_the_pivots_last_attempt_parks_the_saga(self) -> None:
        given(*BEFORE_PAY, *(step.lost("pay", n) for n in range(1, 7))).then_parks("pay")

    def test_cannot_be_told_of_a_saga_with_no_attempt_out(self) -> None:
        with pytest.raises(IllegalTransition, match="no attempt is in flight"):
            attempt_lost(replay([begun()]))


class TestWhatIsRecorded:
    """Settings may change between two releases; what a saga decided does not."""

    def test_a_saga_that_turned_goes_on_undoing_when_more_attempts_are_allowed(self) -> None:
        patient = with_attempts(TRIP, 99)
        story: Story = (
            begun(),
            step.succeeded("hotel"),
            step.unknown("car", 1),
            step.unknown("car", 2),
        )
        given(*story, saga=patient).then_runs("car", attempt=3, after=0.6)
        given(*story, turned("car", "hotel"), saga=patient).then_undoes("car")

    def test_a_parked_saga_stays_parked_when_more_attempts_are_allowed(self) -> None:
        story: Story = (*BEFORE_PAY, step.unknown("pay", 1), step.unknown("pay", 2), parked("pay"))
        given(*story, saga=with_attempts(TRIP, 99)).then_rests("parked")

    def test_what_is_undone_is_what_was_recorded_not_what_a_new_look_would_say(self) -> None:
        given(
            begun(), step.succeeded("hotel"), step.rejected("car"), turned()
        ).then_is_compensated()

    def test_fewer_attempts_allowed_end_a_saga_at_its_next_failure(self) -> None:
        strict = with_attempts(TRIP, 1)
        given(begun(), step.unknown("hotel", 1), saga=strict).then_turns("hotel")
        given(begun(), step.unknown("hotel", 1), step.out("hotel", 2), saga=strict).then_rests(
            "in flight"
        )


AT_ANY_MOMENT = pytest.mark.parametrize(
    ("story", "undone"),
    [
        pytest.param((begun(),), (), id="before the first step"),
        pytest.param((begun(), step.succeeded("hotel")), ("hotel",), id="between two steps"),
        pytest.param((begun(), step.held("hotel")), (), id="while the first is held"),
        pytest.param((begun(), step.held("hotel", in_doubt=True)), ("hotel",), id="held in doubt"),
        pytest.param((begun(), step.unknown("hotel")), ("hotel",), id="in doubt"),
        pytest.param(BEFORE_PAY, ("car", "hotel"), id="just before the pivot"),
        pytest.param(
            (*BEFORE_PAY, step.held("pay")), ("car", "hotel"), id="while the pivot is held"
        ),
        pytest.param(
            (*BEFORE_PAY, step.rejected("pay")), ("car", "hotel"), id="after a pivot's refusal"
        ),
    ],
)
"""What happened so far, and what is to be undone when the saga turns round then."""


class TestACancel:
    @AT_ANY_MOMENT
    def test_before_the_point_of_no_return_undoes_what_was_touched(
        self, story: Story, undone: tuple[str, ...]
    ) -> None:
        given(*story).when(cancelled()).then_turns(*undone, because="cancelled")

    @pytest.mark.parametrize(
        ("outcome", "undone"),
        [
            pytest.param(step.succeeded("hotel"), ("hotel",), id="succeeded"),
            pytest.param(step.rejected("hotel"), (), id="rejected"),
            pytest.param(step.unknown("hotel"), ("hotel",), id="unknown"),
            pytest.param(step.lost("hotel"), ("hotel",), id="worker lost"),
            pytest.param(step.held("hotel"), (), id="held"),
        ],
    )
    def test_during_an_attempt_waits_for_its_outcome(
        self, outcome: list[SagaEvent], undone: tuple[str, ...]
    ) -> None:
        waiting = given(*HOTEL_IS_OUT).when(cancelled()).then_rests("in flight")
        waiting.when(outcome[1]).then_turns(*undone, because="cancelled")

    def test_during_the_pivot_lets_it_have_the_last_word(self) -> None:
        asked = given(*BEFORE_PAY, step.out("pay")).when(cancelled()).then_rests("in flight")
        asked.when(step.succeeded("pay")[1]).then_runs("mail", attempt=1)
        asked.when(step.unknown("pay")[1]).then_runs("pay", attempt=2, after=1.0)
        asked.when(step.held("pay")[1]).then_turns("car", "hotel", because="cancelled")
        asked.when(step.rejected("pay")[1]).then_turns("car", "hotel", because="cancelled")

    @pytest.mark.parametrize(
        "story",
        [
            pytest.param((*BEFORE_PAY, step.unknown("pay")), id="pivot in doubt"),
            pytest.param((*BEFORE_PAY, step.held("pay", in_doubt=True)), id="pivot held in doubt"),
            pytest.param(BEFORE_MAIL, id="pivot done"),
            pytest.param((*BEFORE_MAIL, step.unknown("mail")), id="later step in doubt"),
        ],
    )
    def test_after_the_point_of_no_return_changes_nothing(self, story: Story) -> None:
        assert not can_compensate(TRIP, given(*story).state)
        same = given(*story).when(cancelled())
        assert decide(TRIP, same.state) == decide(TRIP, given(*story).state)

    def test_of_a_saga_without_a_pivot_comes_too_late_once_a_retryable_step_has_begun(self) -> None:
        story: Story = (begun(), step.succeeded("save"))
        given(*story, saga=NOTE).when(cancelled()).then_turns("save", because="cancelled")
        given(*story, step.held("tell"), saga=NOTE).when(cancelled()).then_runs(
            "tell", attempt=1, after=0.5
        )

    @pytest.mark.parametrize("failed", [step.rejected("tell"), step.unknown("tell")])
    def test_comes_too_late_even_when_that_step_was_given_fresh_attempts(
        self, failed: list[SagaEvent]
    ) -> None:
        story: Story = (begun(), step.succeeded("save"), failed, parked("tell"))
        given(*story, cancelled(), saga=NOTE).then_runs("tell", attempt=1)
        given(*story, resumed(), cancelled(), saga=NOTE).then_runs("tell", attempt=1)

    def test_of_a_saga_that_is_undoing_already_changes_nothing(self) -> None:
        given(*UNDOING).when(cancelled()).then_undoes("car")
        given(*UNDOING, undo.out("car")).when(cancelled()).then_rests("in flight")

    def test_of_a_saga_parked_while_undoing_goes_on_undoing(self) -> None:
        stuck: Story = (*UNDOING, undo.unknown("car", 1), undo.unknown("car", 2))
        given(*stuck, parked("car", "compensation")).when(cancelled()).then_undoes("car")

    def test_of_a_saga_parked_in_doubt_at_its_pivot_tries_the_pivot_again(self) -> None:
        stuck: Story = (*BEFORE_PAY, step.unknown("pay", 1), step.unknown("pay", 2), parked("pay"))
        given(*stuck).when(cancelled()).then_runs("pay", attempt=1)

    def test_asked_for_twice_is_as_good_as_once(self) -> None:
        given(begun(), cancelled(), cancelled()).then_turns(because="cancelled")

    def test_of_a_saga_that_is_over_is_refused(self) -> None:
        given(*BEFORE_MAIL, step.succeeded("mail"), SagaCompleted()).then_refuses(cancelled())


class TestADeadline:
    @AT_ANY_MOMENT
    def test_turns_the_saga_and_undoes_what_was_touched(
        self, story: Story, undone: tuple[str, ...]
    ) -> None:
        started = (begun(deadline=900.0), *story[1:])
        late = given(*started).when(out_of_time())
        late.then_turns(*undone, because="deadline")

    def test_says_at_the_end_what_it_was(self) -> None:
        late = given(begun(deadline=1.5), out_of_time()).then_turns(because="deadline")
        late.then_records(
            SagaCompensated,
            code="deadline_exceeded",
            message="it was not done within 1.5 s, which is its deadline",
        )

    def test_is_there_until_the_point_of_no_return(self) -> None:
        assert deadline_seconds(TRIP, given(begun()).state) is None
        timely: Story = (begun(deadline=9.0), *BEFORE_PAY[1:])
        for told in (timely[:1], timely, (*timely, step.out("pay")), (*timely, step.held("pay"))):
            assert deadline_seconds(TRIP, given(*told).state) == 9.0
        past: Story = (*timely, step.unknown("pay"))
        for told in (past, (*timely, step.succeeded("pay")), (*timely, cancelled())):
            assert deadline_seconds(TRIP, given(*told).state) is None
        turned_round = given(*timely, step.rejected("pay"), turned("car", "hotel"))
        assert deadline_seconds(TRIP, turned_round.state) is None
        stuck = given(*past, step.unknown("pay", 2), parked("pay"))
        assert deadline_seconds(TRIP, stuck.state) is None

    def test_does_not_undo_what_is_done_to_the_last_step(self) -> None:
        every = (begun(deadline=9.0), step.succeeded("hotel"), step.succeeded("car"))
        whole = dataclasses.replace(TRIP, steps=TRIP.steps[:2])
        assert deadline_seconds(whole, given(*every[:2], saga=whole).state) == 9.0
        assert deadline_seconds(whole, given(*every, saga=whole).state) is None

    def test_that_comes_after_a_persons_cancel_is_not_what_turned_it(self) -> None:
        given(begun(deadline=9.0), cancelled(), out_of_time()).then_turns(because="cancelled")
        given(begun(deadline=9.0), out_of_time(), cancelled()).then_turns(because="deadline")


class TestAReplay:
    def test_of_a_parked_pivot_tries_it_with_fresh_attempts(self) -> None:
        stuck: Story = (*BEFORE_PAY, step.unknown("pay", 1), step.unknown("pay", 2), parked("pay"))
        again = given(*stuck, resumed()).then_runs("pay", attempt=1)
        again.when(step.unknown("pay", 1)).then_runs("pay", attempt=2, after=1.0)
        again.when(step.unknown("pay", 1), step.unknown("pay", 2)).then_parks("pay")

    def test_keeps_the_doubt_so_that_a_refusal_still_parks(self) -> None:
        stuck: Story = (*BEFORE_PAY, step.unknown("pay", 1), step.unknown("pay", 2), parked("pay"))
        again = given(*stuck, resumed())
        assert again.state.progress("pay").in_doubt
        again.when(step.rejected("pay", 1)).then_parks("pay")

    def test_of_a_parked_retryable_step_leads_to_completion(self) -> None:
        stuck: Story = (*BEFORE_MAIL, step.rejected("mail"), parked("mail"))
        given(*stuck, resumed(), step.succeeded("mail")).then_completes()

    def test_of_a_parked_compensation_goes_on_undoing_never_forward(self) -> None:
        stuck: Story = (*UNDOING, undo.unknown("car", 1), undo.unknown("car", 2))
        again = given(*stuck, parked("car", "compensation"), resumed()).then_undoes("car")
        again.when(undo.succeeded("car")).then_undoes("hotel")

    def test_makes_the_step_that_is_due_look_before_it_acts(self) -> None:
        stuck: Story = (*BEFORE_MAIL, step.rejected("mail"), parked("mail"), resumed())
        assert given(*stuck).state.progress("mail").in_doubt
        back = (*UNDOING, undo.rejected("car", 1), undo.rejected("car", 2))
        again = given(*back, parked("car", "compensation"), resumed()).state
        assert again.progress("car").undo_in_doubt

    def test_does_a_step_again_whose_effect_is_gone_and_then_goes_on_where_it_stood(self) -> None:
        stuck: Story = (*BEFORE_MAIL, step.rejected("mail"), parked("mail"))
        again = given(*stuck, resumed("car")).then_runs("car", attempt=1)
        assert again.state.progress("car").in_doubt
        again.when(step.succeeded("car")).then_runs("mail", attempt=1)

    def test_does_several_steps_again_in_their_order(self) -> None:
        stuck: Story = (*BEFORE_MAIL, step.rejected("mail"), parked("mail"))
        again = given(*stuck, resumed("car", "hotel")).then_runs("hotel", attempt=1)
        again.when(step.succeeded("hotel")).then_runs("car", attempt=1)

    def test_of_a_step_before_the_point_of_no_return_parks_again_when_that_fails(self) -> None:
        stuck: Story = (*BEFORE_MAIL, step.rejected("mail"), parked("mail"), resumed("car"))
        given(*stuck, step.rejected("car")).then_parks("car")
        given(*stuck, step.unknown("car", 1), step.unknown("car", 2)).then_parks("car")

    def test_does_only_again_what_was_done_and_nothing_on_the_way_back(self) -> None:
        stuck: Story = (*BEFORE_MAIL, step.rejected("mail"), parked("mail"))
        given(*stuck).then_refuses(resumed("mail")).then_refuses(resumed("train"))
        back = (*UNDOING, undo.rejected("car", 1), undo.rejected("car", 2))
        given(*back, parked("car", "compensation")).then_refuses(resumed("hotel"))

    def test_counts_as_another_run(self) -> None:
        stuck = given(*BEFORE_MAIL, step.rejected("mail"), parked("mail"))
        assert (stuck.state.runs, stuck.when(resumed()).state.runs) == (1, 2)

    @pytest.mark.parametrize(
        "story", [(begun(),), HOTEL_IS_OUT, UNDOING, (*BEFORE_MAIL, step.out("mail"))]
    )
    def test_of_a_saga_that_is_not_parked_is_refused(self, story: Story) -> None:
        given(*story).then_refuses(resumed())


class TestAnEventThatDoesNotFit:
    """It raises, and nothing changes."""

    OTHER_ATTEMPT = (
        StepSucceeded(step="hotel", attempt=2),
        StepSucceeded(step="car", attempt=1),
        StepFailed(step="hotel", attempt=2, outcome="unknown", code="c", message="m"),
        CompensationSucceeded(step="hotel", attempt=1),
    )

    @pytest.mark.parametrize("outcome", OTHER_ATTEMPT)
    def test_an_outcome_belongs_to_the_attempt_that_is_out(self, outcome: SagaEvent) -> None:
        given(*HOTEL_IS_OUT).then_refuses(outcome)

    def test_an_outcome_needs_an_attempt(self) -> None:
        given(begun()).then_refuses(step.succeeded("hotel")[1])
        given(begun(), step.succeeded("hotel")).then_refuses(step.succeeded("hotel")[1])
        given(*UNDOING).then_refuses(undo.unknown("car")[1])

    def test_a_saga_begins_once(self) -> None:
        given(begun()).then_refuses(begun())

    def test_nothing_happens_before_the_beginning(self) -> None:
        for event in (step.out("hotel"), turned(), SagaCompleted(), parked("hotel"), resumed()):
            given().then_refuses(event)

    def test_two_attempts_are_never_out_at_once(self) -> None:
        given(*HOTEL_IS_OUT).then_refuses(step.out("hotel", 2))
        given(*HOTEL_IS_OUT).then_refuses(step.out("car"))

    def test_a_step_that_is_done_is_not_done_again(self) -> None:
        given(begun(), step.succeeded("hotel")).then_refuses(step.out("hotel", 2))

    def test_no_step_runs_forward_once_the_saga_has_turned(self) -> None:
        given(*UNDOING).then_refuses(step.out("pay", 2))

    def test_nothing_is_undone_before_the_saga_has_turned(self) -> None:
        given(*BEFORE_PAY).then_refuses(undo.out("car"))

    def test_only_the_step_whose_turn_it_is_is_undone(self) -> None:
        given(*UNDOING).then_refuses(undo.out("hotel"))
        given(*UNDOING, undo.succeeded("car")).then_refuses(undo.out("car", 2))

    def test_a_saga_does_not_turn_twice_nor_with_an_attempt_out(self) -> None:
        given(*UNDOING).then_refuses(turned())
        given(*HOTEL_IS_OUT).then_refuses(turned())

    def test_a_saga_ends_neither_with_an_attempt_out_nor_with_work_left_to_undo(self) -> None:
        compensated = SagaCompensated(code="c", message="m")
        given(*HOTEL_IS_OUT).then_refuses(SagaCompleted()).then_refuses(parked("hotel"))
        given(*UNDOING).then_refuses(compensated).then_refuses(SagaCompleted())
        given(begun()).then_refuses(compensated)

    @pytest.mark.parametrize(
        "ending",
        [
            (*BEFORE_MAIL, step.succeeded("mail"), SagaCompleted()),
            (begun(), step.rejected("hotel"), turned(), SagaCompensated(code="c", message="m")),
        ],
    )
    def test_after_the_end_nothing_fits_any_more(self, ending: Story) -> None:
        over = given(*ending)
        for event in (begun(), step.out("hotel"), undo.out("hotel"), turned(), resumed()):
            over.then_refuses(event)
        for event in (cancelled(), parked("hotel"), SagaCompleted()):
            over.then_refuses(event)

    def test_a_parked_saga_does_nothing_until_somebody_says_so(self) -> None:
        stuck = given(*BEFORE_MAIL, step.rejected("mail"), parked("mail"))
        stuck.then_refuses(step.out("mail", 1)).then_refuses(SagaCompleted())
        stuck.then_refuses(parked("mail")).then_refuses(turned())

    def test_a_state_cannot_be_changed_by_hand(self) -> None:
        state = given(begun()).state
        with pytest.raises(AttributeError):
            state.status = "completed"  # type: ignore[misc]


class TestTheWait:
    def test_is_the_same_whenever_the_same_history_is_asked(self) -> None:
        story: Story = (begun(), step.unknown("hotel", 1))
        assert len({delays(TRIP, [story])[0] for _ in range(5)}) == 1

    def test_is_spread_by_a_quarter_so_that_many_sagas_do_not_come_back_together(self) -> None:
        stories: list[Story] = [
            (begun(command_id=f"c-{n}"), step.unknown("hotel")) for n in range(500)
        ]
        waits = delays(TRIP, stories)
        assert 0.15 <= min(waits) < 0.16
        assert 0.24 < max(waits) <= 0.25
        assert len(set(waits)) > 80  # of 101 that a millisecond tells apart

    def test_grows_with_each_attempt_up_to_the_policys_cap(self) -> None:
        saga = with_attempts(TRIP, 40)
        stories: list[Story] = [
            (begun(), *(step.unknown("hotel", n) for n in range(1, m))) for m in range(2, 40)
        ]
        waits = delays(saga, stories)
        bare = [min(30.0, 0.2 * 3.0**n) for n in range(len(waits))]
        for wait, plain in zip(waits, bare, strict=True):
            assert 0.749 * plain <= wait <= 1.251 * plain

    def test_of_a_policy_never_overflows_however_many_attempts_there_were(self) -> None:
        policy = Retry()
        assert [policy.delay(n) for n in (1, 2, 3)] == pytest.approx([0.2, 0.6, 1.8])
        assert policy.delay(10**9) == 30.0
        assert all(a <= b for a, b in pairwise(policy.delay(n) for n in range(1, 50)))


def test_advance_records_every_decision_up_to_the_next_thing_to_do() -> None:
    state = given(begun(), step.rejected("hotel")).state
    events, after, action = advance(TRIP, state)
    assert [event.type for event in events] == ["compensation.began", "saga.compensated"]
    assert action == Idle("over")
    assert after == replay([*events_of([begun(), step.rejected("hotel")]), *events])


def test_the_sequence_counts_the_events() -> None:
    assert [given(*BEFORE_PAY[:n]).state.sequence for n in range(4)] == [0, 1, 3, 5]


NOTE = Saga(
    name="keep-a-note",
    version=1,
    command="note.keep",
    input=TRIP.input,
    admit=admit_nobody,
    steps=(
        compensatable("save", do=nothing, undo=nothing),
        retryable("tell", do=nothing, retry=Retry(attempts=1)),
    ),
)
"""A saga without a pivot: what can't be taken back begins with its first retryable step."""


def with_attempts(saga: Saga, attempts: int) -> Saga:
    """The same saga with another retry limit on every step."""
    return dataclasses.replace(
        saga,
        steps=tuple(
            dataclasses.replace(s, retry=dataclasses.replace(s.retry, attempts=attempts))
            for s in saga.steps
        ),
    )
