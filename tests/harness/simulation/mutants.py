"""Engines and steps that are wrong on purpose: the product with one rule broken each.

How many faults it takes at most until one shows itself is written beside it, which says how well
hidden such a mistake would be.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest

import evosaga.orchestrator.engine.decider
import evosaga.orchestrator.engine.driver
import evosaga.orchestrator.engine.execution
import evosaga.sagas.whatsapp.steps.evolution_instance as steps
import evosaga.sagas.whatsapp.steps.instance_removal as instance_removal
from evosaga.events.append import Append, Appended
from evosaga.events.event_log import VersionConflict
from evosaga.events.model import CompensationFailed, SagaEvent, StepFailed
from evosaga.orchestrator.engine.driver import SagaDriver
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.lease import Lease, LeaseLost
from evosaga.orchestrator.engine.state import State
from evosaga.sagas.outcome import Done, Outcome, Rejected, Unknown
from evosaga.sagas.whatsapp.evolution.answers import Answer, Presence
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi, InstanceSighting
from evosaga.sagas.whatsapp.identity import name_of, token_of
from evosaga.sagas.whatsapp.ownership import fingerprint
from tests.harness.simulation.database import CATALOGUE, Database
from tests.harness.simulation.outside import GLOBAL_KEY

Mutant = Callable[[pytest.MonkeyPatch], None]


# --- the engine ----------------------------------------------------------------------------------


def acts_before_its_intent_is_committed(patch: pytest.MonkeyPatch) -> None:
    async def record(self: SagaDriver, live: SagaInstance, fact: SagaEvent | None) -> bool:
        append = self._append(live, fact)
        if append is None or append.join is not None:
            return await honest(self, live, fact)
        self._later = asyncio.create_task(self._log.append(append))  # type: ignore[attr-defined]
        live.apply(as_if_committed(append), time.monotonic())
        return True

    honest = SagaDriver._record
    patch.setattr(SagaDriver, "_record", record)


def as_if_committed(append: Append[State]) -> Appended[State]:
    return Appended(append.events, datetime.now(UTC), append.row, append.state)


def appends_without_looking_at_the_sequence(patch: pytest.MonkeyPatch) -> None:
    def commit(self: Database, append: Append[State]) -> Appended[State]:
        return honest(self, replace(append, expected=self.sagas[append.saga_id].sequence))

    honest = Database.commit
    patch.setattr(Database, "commit", commit)


def does_the_joined_effect_though_the_append_has_lost(patch: pytest.MonkeyPatch) -> None:
    def commit(self: Database, append: Append[State]) -> Appended[State]:
        try:
            return honest(self, append)
        except VersionConflict:
            if append.join is not None:
                with_join = self.sagas[append.saga_id]
                told, sequence = list(self.events[append.saga_id]), with_join.sequence
                state, row = with_join.state, with_join.row
                owner, next_at = with_join.owner, with_join.next_at
                honest(self, replace(append, expected=sequence))
                self.events[append.saga_id], with_join.sequence = told, sequence
                with_join.state, with_join.row = state, row
                with_join.owner, with_join.next_at = owner, next_at
            raise

    honest = Database.commit
    patch.setattr(Database, "commit", commit)


def goes_on_after_a_conflict_as_if_it_had_won(patch: pytest.MonkeyPatch) -> None:
    async def record(self: SagaDriver, live: SagaInstance, fact: SagaEvent | None) -> bool:
        append = self._append(live, fact)
        before = live.state
        if not await honest(self, live, fact) and append is not None:
            live.state = before
            live.apply(as_if_committed(append), time.monotonic())
        return True

    honest = SagaDriver._record
    patch.setattr(SagaDriver, "_record", record)


def does_not_take_in_what_others_appended(patch: pytest.MonkeyPatch) -> None:
    def reload(self: SagaInstance, registry: Any, history: Any) -> None:
        state = self.state
        honest(self, registry, history)
        self.state = state

    honest = SagaInstance.reload
    patch.setattr(SagaInstance, "reload", reload)


def takes_every_saga_for_its_own_after_a_conflict(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evosaga.orchestrator.engine.driver, "still_claimed", lambda *_: True)


def carries_out_the_attempt_of_a_dead_worker_again(patch: pytest.MonkeyPatch) -> None:
    def spawn(self: Engine, live: SagaInstance, *, lost_attempt: bool) -> None:
        honest(self, live, lost_attempt=False)

    honest = Engine._spawn
    patch.setattr(Engine, "_spawn", spawn)


def takes_a_lost_attempt_for_one_that_was_never_sent(patch: pytest.MonkeyPatch) -> None:
    as_lost(patch, outcome="held")


def takes_a_lost_attempt_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    as_lost(patch, outcome="rejected")


def as_lost(patch: pytest.MonkeyPatch, **how: str) -> None:
    def lost(state: Any) -> StepFailed | CompensationFailed:
        return honest(state).model_copy(update=how)

    honest = evosaga.orchestrator.engine.decider.attempt_lost
    patch.setattr(evosaga.orchestrator.engine.driver, "attempt_lost", lost)


def takes_an_interrupted_attempt_for_one_that_never_began(patch: pytest.MonkeyPatch) -> None:
    async def attempt(self: SagaDriver, live: SagaInstance) -> SagaEvent | None:
        flight = live.state.in_flight
        if flight is None:
            return None
        try:
            self._lease.check()
            return await evosaga.orchestrator.engine.execution.execute(live, flight, self._services)
        except LeaseLost:
            await self._lease.regained()
            return evosaga.orchestrator.engine.decider.attempt_not_started(live.state)

    patch.setattr(SagaDriver, "_attempt", attempt)


def takes_a_timeout_for_a_failure(patch: pytest.MonkeyPatch) -> None:
    def fact(flight: Any, outcome: Outcome) -> SagaEvent:
        if isinstance(outcome, Unknown):
            outcome = Rejected(outcome.code, outcome.message)
        return honest(flight, outcome)

    honest = evosaga.orchestrator.engine.execution.outcome_event
    patch.setattr(evosaga.orchestrator.engine.execution, "outcome_event", fact)


def forgets_what_is_to_follow(patch: pytest.MonkeyPatch) -> None:
    def fact(flight: Any, outcome: Outcome) -> SagaEvent:
        if isinstance(outcome, Done):
            outcome = replace(outcome, follow_up=None)
        return honest(flight, outcome)

    honest = evosaga.orchestrator.engine.execution.outcome_event
    patch.setattr(evosaga.orchestrator.engine.execution, "outcome_event", fact)


def counts_the_age_of_a_doubt_from_the_beginning(patch: pytest.MonkeyPatch) -> None:
    def context(live: SagaInstance, flight: Any, services: Any) -> Any:
        return replace(honest(live, flight, services), doubt_age=1e9)

    honest = evosaga.orchestrator.engine.execution.context
    patch.setattr(evosaga.orchestrator.engine.execution, "context", context)


def acts_without_asking_whether_its_lease_is_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "check", lambda _: None)


def acts_on_a_lease_that_was_lost_and_won_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "bind_lease", lambda _: None)


# --- the steps -----------------------------------------------------------------------------------


def takes_a_403_for_success(patch: pytest.MonkeyPatch) -> None:
    """And does not look first, as for a stranger who comes between the look and the create."""

    async def create(ctx: Any) -> Outcome:
        blind = ctx.input.model_copy(update={"instance_name": None})
        return await steps.create_instance(replace(ctx, input=blind))

    trusts(patch, 403)
    in_the_catalogue(patch, "create-integration", do=create)


def takes_a_201_for_success(patch: pytest.MonkeyPatch) -> None:
    trusts(patch, 201)


def trusts(patch: pytest.MonkeyPatch, status: int) -> None:
    async def verify(ctx: Any, name: str, token: str, answer: Answer, verdict: Any) -> Outcome:
        if answer.status == status:
            return Done({"token_hash": fingerprint(token)})
        return await honest(ctx, name, token, answer, verdict)

    honest = steps._verify
    patch.setattr(steps, "_verify", verify)


def does_not_wait_until_a_400_has_cleaned_up(patch: pytest.MonkeyPatch) -> None:
    waited_for = {k: v for k, v in steps._BEING_REMOVED.items() if k != steps._CLEANING_UP}
    patch.setattr(steps, "_BEING_REMOVED", waited_for)


def removes_without_looking(patch: pytest.MonkeyPatch) -> None:
    async def remove(ctx: Any) -> Outcome:
        name, token = name_of(ctx), token_of(ctx)
        return await instance_removal._remove(
            ctx, name, token, InstanceSighting(Presence.MINE, "", Answer(200, None, ""))
        )

    in_the_catalogue(patch, "create-integration", undo=remove)


def takes_the_answer_to_a_delete_for_the_end(patch: pytest.MonkeyPatch) -> None:
    async def vanishes(*_: Any) -> InstanceSighting:
        return InstanceSighting(Presence.ABSENT, "", Answer(200, None, ""))

    patch.setattr(instance_removal, "_vanishes", vanishes)


def removes_with_the_global_key(patch: pytest.MonkeyPatch) -> None:
    async def delete(self: EvolutionApi, name: str, token: str) -> Answer:
        return await honest(self, name, GLOBAL_KEY)

    honest = EvolutionApi.delete
    patch.setattr(EvolutionApi, "delete", delete)


def creates_again_without_looking(patch: pytest.MonkeyPatch) -> None:
    async def create(ctx: Any) -> Outcome:
        return await steps.create_instance(replace(ctx, in_doubt=False))

    in_the_catalogue(patch, "create-integration", do=create)


def in_the_catalogue(patch: pytest.MonkeyPatch, saga: str, **how: Any) -> None:
    """Another effect for the step ``evolution`` of a saga."""
    honest = CATALOGUE.versions[saga, 1]
    changed = tuple(replace(s, **how) if s.name == "evolution" else s for s in honest.steps)
    wrong = replace(honest, steps=changed)
    patch.setitem(CATALOGUE.versions, (saga, 1), wrong)
    patch.setitem(CATALOGUE.by_command, wrong.command, wrong)


# --- and the search for them ---------------------------------------------------------------------


@dataclass(frozen=True)
class Hidden:
    """A mutant, where it shows itself, and how many faults that takes."""

    mutant: Mutant
    breaks: str
    """The law that it must be caught by, or how else the judge puts it."""
    scenario: str = "create"
    faults: int = 1
    first: str | None = None
    """The first fault, where it would take long to come across it."""
    fenced: bool = True


MUTANTS: Final = [
    Hidden(acts_before_its_intent_is_committed, "S5"),
    Hidden(appends_without_looking_at_the_sequence, "S7"),
    Hidden(does_the_joined_effect_though_the_append_has_lost, "S10"),
    Hidden(goes_on_after_a_conflict_as_if_it_had_won, "saga_quarantined"),
    Hidden(does_not_take_in_what_others_appended, "it goes on for ever"),
    Hidden(takes_every_saga_for_its_own_after_a_conflict, "saga_quarantined"),
    Hidden(carries_out_the_attempt_of_a_dead_worker_again, "S5"),
    Hidden(takes_a_lost_attempt_for_one_that_was_never_sent, "S7", faults=1),
    Hidden(takes_a_lost_attempt_for_a_refusal, "S7"),
    Hidden(takes_an_interrupted_attempt_for_one_that_never_began, "L3", faults=2, first="doze"),
    Hidden(takes_a_timeout_for_a_failure, "L3"),
    Hidden(forgets_what_is_to_follow, "L3", faults=2, first="late"),
    Hidden(counts_the_age_of_a_doubt_from_the_beginning, "L3", faults=1),
    Hidden(acts_without_asking_whether_its_lease_is_over, "S5"),
    Hidden(acts_on_a_lease_that_was_lost_and_won_again, "S5"),
    Hidden(appends_without_looking_at_the_sequence, "S7", fenced=False),
    Hidden(takes_a_403_for_success, "S9", "create where a stranger lives", faults=0),
    Hidden(takes_a_201_for_success, "S9"),
    Hidden(does_not_wait_until_a_400_has_cleaned_up, "L3"),
    Hidden(removes_without_looking, "L3", faults=2, first="late"),
    Hidden(takes_the_answer_to_a_delete_for_the_end, "L3", "delete"),
    Hidden(removes_with_the_global_key, "S8", "delete", faults=0),
    Hidden(creates_again_without_looking, "L3"),
]
