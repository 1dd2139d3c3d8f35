"""What comes next, told in a few words, without a server, a clock or a call of any step::

given(BOOK_A_ROOM, done("reserve"), unknown("charge")).then(runs("charge", attempt=2))
given(BOOK_A_ROOM, done("reserve")).when(CANCEL).then(undoes("reserve"))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from evosaga.events.model import SagaCancelRequested, SagaEvent, SagaResumed, SagaStarted
from evosaga.orchestrator.engine.decider import Idle, Run, advance, attempt_lost, intent
from evosaga.orchestrator.engine.execution import outcome_event
from evosaga.orchestrator.engine.state import State, evolve
from evosaga.sagas.admission import Admission, Refusal
from evosaga.sagas.conflicts import BEHIND, OpenSaga, weigh
from evosaga.sagas.definition import Saga
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected, Unknown

_KEY: Final = "a-test"
CANCEL: Final = SagaCancelRequested(by="a-test")
REPLAY: Final = SagaResumed(by="a-test")


@dataclass(frozen=True)
class Attempt:
    """One attempt of a step, forward or back, and how it ended; None: its worker died over it."""

    step: str
    outcome: Outcome | None


def done(step: str, **result: Any) -> Attempt:
    """The step, or its undo, said that its effect is there."""
    return Attempt(step, Done(result))


def rejected(step: str, code: str = "rejected") -> Attempt:
    """It said that nothing happened, and that trying again would not help."""
    return Attempt(step, Rejected(code, code))


def unknown(step: str, code: str = "unknown") -> Attempt:
    """Nobody knows whether it happened."""
    return Attempt(step, Unknown(code, code))


def held(step: str, code: str = "held") -> Attempt:
    """Not now."""
    return Attempt(step, Held(code, code))


def lost(step: str) -> Attempt:
    """Its worker died before it said how it ended."""
    return Attempt(step, None)


@dataclass(frozen=True)
class Next:
    """What happens next. ``step``: with ``does`` runs or undoes."""

    does: str
    step: str | None = None
    attempt: int | None = None
    in_doubt: bool | None = None
    code: str | None = None

    def __str__(self) -> str:
        more = ", ".join(
            f"{name}={value!r}"
            for name in ("attempt", "in_doubt", "code")
            if (value := getattr(self, name)) is not None
        )
        return f"{self.does}{f' {self.step}' if self.step else ''}{f' ({more})' if more else ''}"


def runs(step: str, *, attempt: int | None = None, in_doubt: bool | None = None) -> Next:
    """The step is tried."""
    return Next("runs", step, attempt, in_doubt)


def undoes(step: str, *, attempt: int | None = None) -> Next:
    """The step is undone."""
    return Next("undoes", step, attempt)


def completed() -> Next:
    """All is done."""
    return Next("completed")


def compensated(code: str | None = None) -> Next:
    """All is undone."""
    return Next("compensated", code=code)


def parked(code: str | None = None) -> Next:
    """It waits for a person."""
    return Next("failed", code=code)


def waits() -> Next:
    """It does nothing until the one beside it is over."""
    return Next("waits")


def supersedes() -> Next:
    """It waits, and the one beside it is asked to stop."""
    return Next("supersedes")


def refused(code: str | None = None) -> Next:
    """It does not begin at all."""
    return Next("refused", code=code)


@dataclass(frozen=True)
class Given:
    """A saga and its history so far."""

    saga: Saga
    state: State
    events: tuple[SagaEvent, ...] = field(default=())
    ahead: tuple[OpenSaga, ...] = ()

    def beside(self, other: Saga, status: str = "running") -> "Given":
        """The same, when an open saga has its business key; ``failed`` is one that is parked."""
        id_, before = UUID(int=len(self.ahead) + 1), self.ahead[-1] if self.ahead else None
        key = f"{_KEY}{BEHIND}{id_}" if before else _KEY
        behind = before.saga_id if before else None
        one = OpenSaga(id_, other.name, status, key, behind=behind)
        return replace(self, ahead=(*self.ahead, one))

    def when(self, *told: Attempt | SagaEvent) -> "Given":
        """The same with what happens then: attempts, ``CANCEL`` or ``REPLAY``."""
        now = self
        for one in told:
            now = now._attempted(one) if isinstance(one, Attempt) else now._with(one)
        return now

    def then(self, expected: Next) -> "Given":
        """Raise ``AssertionError`` unless that comes next."""
        found = self.next
        fits = (found.does, found.step) == (expected.does, expected.step) and all(
            getattr(expected, name) in (None, getattr(found, name))
            for name in ("attempt", "in_doubt", "code")
        )
        if not fits:
            raise AssertionError(f"{self.saga.name} now {found}, not {expected}")
        return self

    @property
    def next(self) -> Next:
        """What comes next."""
        if self.ahead:
            said = weigh(self.saga.on_conflict, UUID(int=0), Admission(_KEY), self.ahead)
            if isinstance(said, Refusal):
                return Next("refused", code=said.code)
            return supersedes() if said.follow_up else waits()
        _, state, action = advance(self.saga, self.state)
        if isinstance(action, Idle):
            end = state.parked or state.compensation
            return Next(str(state.status), code=end.code if end else None)
        progress = state.progress(action.step.name)
        forward = action.direction == "forward"
        doubt = progress.in_doubt if forward else progress.undo_in_doubt
        return Next("runs" if forward else "undoes", action.step.name, action.attempt, doubt)

    def _with(self, *events: SagaEvent) -> "Given":
        state = self.state
        for event in events:
            state = evolve(state, event)
        return replace(self, state=state, events=(*self.events, *events), ahead=())

    def _attempted(self, attempt: Attempt) -> "Given":
        events, _, action = advance(self.saga, self.state)
        if not isinstance(action, Run) or action.step.name != attempt.step:
            raise AssertionError(
                f"{self.saga.name} now {self.next}, so {attempt.step} is not tried"
            )
        now = self._with(*events, intent(action, "a-test", 30.0))
        flight = now.state.in_flight
        assert flight is not None
        if attempt.outcome is None:
            return now._with(attempt_lost(now.state))
        return now._with(outcome_event(flight, attempt.outcome))


def given(saga: Saga, *told: Attempt | SagaEvent, facts: Mapping[str, Any] | None = None) -> Given:
    """A saga that has begun, and what has happened to it."""
    start = SagaStarted(
        saga=saga.name,
        version=saga.version,
        command=saga.command,
        command_id="a-test",
        command_hash="",
        business_key=_KEY,
        input={},
        facts=dict(facts or {}),
    )
    return Given(saga, State())._with(start).when(*told)
