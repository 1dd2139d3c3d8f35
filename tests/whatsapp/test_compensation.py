"""A create that fails at any of its steps is undone in reverse, and nothing is left anywhere."""

import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.sagas.whatsapp.steps.instance_removal
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView
from tests.support.driving import contradictions, create, impatient, outcome, publish, story
from tests.support.waiting import eventually
from tests.support.workers import Worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"evolution_timeout": 0.4})


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings, impatient()) as worker:
        yield worker


async def undone(pool: Pool, saga: SagaView) -> list[str]:
    """The steps that were undone, in order."""
    lines = await story(pool, saga)
    return [line.split()[1] for line in lines if line.startswith("compensation.succeeded")]


async def assert_nothing_left(
    pool: Pool, redis: Redis, evolution: SimulatedEvolution, saga: SagaView
) -> None:
    name = str(saga.instance_name)
    await eventually(lambda: name not in evolution.live() and name not in evolution.rows())
    rows = await pool.fetchval(
        "SELECT count(*) FROM healthcare.integrations WHERE id = $1", saga.saga_id
    )
    assert rows == 0
    assert await redis.exists(f"whatsapp:instance:{name}", f"evosaga:qr:{name}") == 0
    assert await contradictions(pool) == []
    # S8: whatever a DELETE removed was removed with the instance's own token.
    for entry in evolution.journal:
        if entry.operation == "delete" or (entry.cause == "DELETE" and entry.applied):
            assert entry.key_kind == "instance", entry


@pytest.mark.fault("b10")
async def test_rejected_by_evolution_nothing_is_there_to_undo(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("reject", operation="create", message="token is required")
    saga = await outcome(pool, await publish(redis, create()))
    assert (saga.status, saga.code) == ("compensated", "evolution_refused")
    assert await undone(pool, saga) == []
    assert evolution.journal.requests("delete") == []
    await assert_nothing_left(pool, redis, evolution, saga)


@pytest.mark.fault("b10", "e7")
async def test_refused_by_the_unique_index_the_instance_is_removed_again(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Somebody saves a row by hand while the instance is being made."""
    command = create()
    organization = uuid.UUID(command["data"]["organization_id"])
    evolution.arm("slow_after", operation="create", seconds=0.2)
    await publish(redis, command)
    await eventually(lambda: f"wa-{command['id']}" in evolution.live())
    await pool.execute("SELECT healthcare.save_evolution_integration($1, 'by-hand')", organization)
    saga = await outcome(pool, command["id"])
    assert (saga.status, saga.code) == ("compensated", "integration_exists")
    assert await undone(pool, saga) == ["evolution"]
    await assert_nothing_left(pool, redis, evolution, saga)
    kept = await pool.fetch("SELECT config ->> 'instance_name' FROM healthcare.integrations")
    assert [row[0] for row in kept] == ["by-hand"]


@pytest.mark.fault("b10")
async def test_refused_by_the_cache_everything_before_is_undone_in_reverse(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    command = create()
    await redis.set(f"evosaga:removed:wa-{command['id']}", command["id"])
    saga = await outcome(pool, await publish(redis, command))
    assert (saga.status, saga.code) == ("compensated", "removed")
    assert await undone(pool, saga) == ["postgres", "evolution"]
    await assert_nothing_left(pool, redis, evolution, saga)


NOBODY_KNOWS: list[tuple[str, dict[str, Any]]] = [
    ("5xx_before", {}),
    ("ok200_error", {}),
    ("refuse", {}),
    ("hang_before", {}),
    ("late", {"seconds": 0.15}),
    ("5xx_after", {}),
    ("html502", {}),
    ("cut", {"bytes": 0}),
    ("cut", {"bytes": 50}),
    ("trunc", {}),
    ("hang_after", {}),
    ("slow_after", {"seconds": 1.0}),
    ("400_async_remove", {"seconds": 0.1}),
]


@pytest.mark.fault("c2", "c5")
async def test_when_nobody_knows_whether_it_happened_the_failed_step_is_undone_too(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    subtests: pytest.Subtests,
) -> None:
    """The answer is lost, the look that follows finds nothing out, and there is no second try."""
    async with running_worker(settings, impatient(1)):
        for mode, parameters in NOBODY_KNOWS:
            with subtests.test(f"{mode} {parameters}"):
                evolution.disarm()
                evolution.arm(mode, operation="create", times=None, **parameters)
                command = create()
                name = f"wa-{command['id']}"  # one that was before it may still be looked at
                evolution.arm("5xx_before", operation="connectionState", name=name)
                saga = await outcome(pool, await publish(redis, command))
                undoing = mode == "400_async_remove"
                code = "refused_and_cleaning_up" if undoing else "evolution_unclear"
                assert (saga.status, saga.code) == ("compensated", code)
                assert await undone(pool, saga) == ["evolution"]
                if mode not in ("5xx_before", "ok200_error", "refuse", "hang_before"):
                    await eventually(partial(was_made, evolution, saga))
                await assert_nothing_left(pool, redis, evolution, saga)


def was_made(evolution: SimulatedEvolution, saga: SagaView) -> bool:
    return any(
        entry.applied == "created" and entry.name == saga.instance_name
        for entry in evolution.journal
    )


@pytest.mark.fault("b18")
async def test_a_server_that_only_errs_is_tried_as_often_as_said_and_not_more(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("5xx_before", operation="create", times=None)
    saga = await outcome(pool, await publish(redis, create()))
    assert (saga.status, saga.code) == ("compensated", "evolution_unclear")
    assert len(evolution.journal.requests("create")) == 2
    assert saga.sequence <= 12
    await assert_nothing_left(pool, redis, evolution, saga)


async def test_an_outage_burns_no_attempt_and_destroys_nothing(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Three times "not now" are more than the two attempts that the step has."""
    evolution.arm("5xx_before", operation="create", status=503)
    evolution.arm("429", operation="create", retry_after=0, times=2)
    saga_id = await publish(redis, create())
    assert (await outcome(pool, saga_id)).status == "completed"
    assert len(evolution.journal.requests("create")) == 4
    lines = await pool.fetch(
        "SELECT data ->> 'outcome' AS outcome, (data ->> 'attempt')::int AS attempt "
        "FROM evosaga.saga_events WHERE type = 'step.failed' AND saga_id = $1",
        uuid.UUID(saga_id),
    )
    assert {(line["outcome"], line["attempt"]) for line in lines} == {("held", 1)}


@pytest.mark.fault("b12")
async def test_a_compensation_that_cannot_succeed_is_parked_and_can_be_cancelled_later(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_VANISH_SECONDS", 0.2)
    monkeypatch.setattr(evosaga.sagas.whatsapp.steps.instance_removal, "_REMOVAL_SECONDS", 0.2)
    command = create()
    await redis.set(f"evosaga:removed:wa-{command['id']}", command["id"])
    evolution.arm("ok200_error", operation="delete", times=None)
    async with running_worker(settings, impatient(1)):
        saga = await outcome(pool, await publish(redis, command))
        assert (saga.status, saga.step, saga.direction) == ("failed", "evolution", "compensation")
        assert f"wa-{command['id']}" in evolution.live()
        rival = create(organization_id=command["data"]["organization_id"])
        assert (await outcome(pool, await publish(redis, rival))).status == "rejected"
        evolution.disarm()
        cancel = {"id": "c", "type": "saga.cancel", "data": {"saga_id": str(saga.saga_id)}}
        await publish(redis, cancel)

        async def freed() -> bool:
            return (await outcome(pool, command["id"])).status == "compensated"

        await eventually(freed)
    await assert_nothing_left(pool, redis, evolution, saga)


async def test_a_stranger_under_our_name_is_never_touched_by_an_undo(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Our instance is swapped for a stranger's just before it would be removed."""
    command = create()
    name = f"wa-{command['id']}"
    await redis.set(f"evosaga:removed:{name}", command["id"])
    evolution.arm("foreign", operation="delete", name=name)
    saga = await outcome(pool, await publish(redis, command))
    assert saga.status == "compensated", saga
    assert name in evolution.live()
    assert name in evolution.rows()
    [attempt] = evolution.journal.requests("delete")
    assert (attempt.status, attempt.applied) == (401, None)


async def test_an_error_text_that_no_json_can_hold_does_not_stop_the_saga(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """What the server says is a stranger's text: half a surrogate pair, say, or a NUL."""
    evolution.arm("reject", operation="create", message="is required: \ud800 \0 " + "x" * 5000)
    saga = await outcome(pool, await publish(redis, create()))
    assert (saga.status, saga.code) == ("compensated", "evolution_refused")
