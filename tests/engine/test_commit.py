"""What goes into one commit: given a saga and a fact, then these events, and no more."""

import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from evosaga.events.commands import Command
from evosaga.events.model import SagaEvent, SagaStarted, StepFailed, StepStarted, StepSucceeded
from evosaga.orchestrator.commands.accept import _first_commit, parse_request
from evosaga.orchestrator.engine.commit import WorkerTerms, next_commit
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.state import replay
from evosaga.sagas.definition import Admission, Saga
from evosaga.sagas.outcome import Done
from evosaga.sagas.registry import registry_of
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION, CreateIntegration

PLAIN: dict[str, Any] = {"organization_id": str(uuid4()), "clinic_id": str(uuid4()), "name": "Sol"}
TERMS = WorkerTerms("worker-7", begins=lambda: True, max_in_memory_wait=5.0, services=None)
NOTIFIED = StepSucceeded(step="notify", attempt=1)


def told_to_notify(saga: Saga, channel: str) -> SagaInstance:
    """A create whose workers are just being told; the phone is to be paired after that."""
    wanted = PLAIN | {"channel": channel}
    beginning = SagaStarted(
        saga=saga.name,
        version=saga.version,
        command=saga.command,
        command_id="c",
        command_hash="h",
        business_key="k",
        input=wanted,
    )
    done = [
        event
        for name in ("evolution", "postgres", "cache")
        for event in (started(name), StepSucceeded(step=name, attempt=1))
    ]
    state = replay([beginning, *done, started("notify")])
    now = time.monotonic()
    data = CreateIntegration.model_validate(wanted)
    return SagaInstance(uuid4(), saga, data, state, "c", "c", started_at=now, last_at=now)


def created(live: SagaInstance) -> SagaStarted:
    assert isinstance(live.state.start, SagaStarted)
    return live.state.start


def started(step: str) -> StepStarted:
    return StepStarted(step=step, attempt=1, worker="worker-7", lease_seconds=50.0)


def composed(
    live: SagaInstance, fact: SagaEvent | None, terms: WorkerTerms = TERMS
) -> list[tuple[str, Any]]:
    append = next_commit(live, fact, None, terms)
    assert append is not None
    return [(event.type, getattr(event, "step", None)) for event in append.events]


def test_an_effect_that_joins_the_commit_knows_what_the_step_before_it_has_just_said() -> None:
    live = told_to_notify(CREATE_INTEGRATION, "EVOLUTION")
    live.state = replay([created(live), started("evolution")])
    made = StepSucceeded(step="evolution", attempt=1, result={"token_hash": "abc"})
    append = next_commit(live, made, None, TERMS)
    assert append is not None
    assert append.join is not None
    assert append.join.context.results == {"evolution": {"token_hash": "abc"}}


def test_a_step_with_something_to_do_is_claimed_and_left_to_be_carried_out() -> None:
    live = told_to_notify(CREATE_INTEGRATION, "WHATSAPP-BAILEYS")
    assert composed(live, NOTIFIED) == [("step.succeeded", "notify"), ("step.started", "pair")]


def test_a_step_with_nothing_to_do_shares_the_commit_of_the_one_before_it() -> None:
    live = told_to_notify(CREATE_INTEGRATION, "EVOLUTION")
    assert composed(live, NOTIFIED) == [
        ("step.succeeded", "notify"),
        ("step.started", "pair"),
        ("step.succeeded", "pair"),
        ("saga.completed", None),
    ]


def test_what_it_amounts_to_is_recorded_like_any_outcome() -> None:
    append = next_commit(told_to_notify(CREATE_INTEGRATION, "EVOLUTION"), NOTIFIED, None, TERMS)
    assert append is not None
    assert StepSucceeded(step="pair", attempt=1, result={"qr": "not_needed"}) in append.events
    assert (append.row.status, append.row.owner) == ("completed", None)


@pytest.mark.parametrize("channel", ["EVOLUTION", "WHATSAPP-BAILEYS"])
def test_a_worker_that_is_stopping_begins_neither(channel: str) -> None:
    leaving = WorkerTerms("worker-7", begins=lambda: False, max_in_memory_wait=5.0, services=None)
    live = told_to_notify(CREATE_INTEGRATION, channel)
    assert composed(live, NOTIFIED, leaving) == [("step.succeeded", "notify")]


async def test_a_worker_told_to_stop_while_its_append_waits_claims_nothing_more() -> None:
    going = True
    live = told_to_notify(CREATE_INTEGRATION, "EVOLUTION")
    live.state = replay([created(live), started("evolution")])
    terms = WorkerTerms("worker-7", begins=lambda: going, max_in_memory_wait=5.0, services=None)
    append = next_commit(live, StepSucceeded(step="evolution", attempt=1), None, terms)
    assert append is not None
    assert append.join is not None
    going = False
    after = append.join.then(Done({"integration_id": "1"}))
    assert [event.type for event in after.events] == ["step.succeeded"]
    assert after.row.owner is None


def test_a_first_step_that_may_be_spared_is_not_claimed_where_the_command_is_accepted() -> None:
    pair = CREATE_INTEGRATION.step("pair")
    alone = replace(CREATE_INTEGRATION, steps=(pair,))
    command = Command(str(uuid4()), alone.command, PLAIN | {"channel": "EVOLUTION"})
    asked = parse_request(registry_of([alone]), command)
    first = _first_commit(TERMS.services, asked, Admission("key"), "worker-7")
    assert [event.type for event in first.events] == ["saga.started"]
    live = SagaInstance.started(registry_of([alone]), asked.saga_id, first.state, "c")
    assert composed(live, None) == [
        ("step.started", "pair"),
        ("step.succeeded", "pair"),
        ("saga.completed", None),
    ]


def test_an_attempt_that_is_claimed_after_a_long_wait_is_its_workers() -> None:
    live = told_to_notify(CREATE_INTEGRATION, "EVOLUTION")
    held = StepFailed(
        step="evolution", attempt=1, outcome="held", code="h", message="m", retry_after_seconds=9.0
    )
    live.state = replay([created(live), started("evolution"), held])
    live.last_at = time.monotonic() - 10.0  # longer than what is waited for in memory
    append = next_commit(live, None, None, TERMS)
    assert append is not None
    assert [event.type for event in append.events] == ["step.started"]
    assert append.row.owner == TERMS.worker
