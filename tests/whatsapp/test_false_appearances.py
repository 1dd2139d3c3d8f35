"""One look is not enough: what seems to be there may be going, what seems gone may come back."""

from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from tests.support.driving import (
    create,
    dead_letters,
    delete,
    nothing_pending,
    outcome,
    publish,
    story,
)
from tests.support.waiting import eventually


async def rows(pool: Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM healthcare.integrations")
    return count


@pytest.mark.fault("c11")
async def test_an_instance_that_is_removed_after_a_400_is_never_taken_for_a_create(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("400_async_remove", operation="create", seconds=0.2)
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    assert len(evolution.journal.requests("create")) == 2, "the first one was removed again"
    assert list(evolution.live()) == list(evolution.rows()) == [saga.instance_name]


async def test_a_delete_waits_while_evolution_has_no_database_to_ask(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Without its database Evolution refuses our own token, which looks like an absence."""
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        assert made.instance_name
        evolution.half_delete(made.instance_name, keep="row")
        for operation in ("fetch", "delete", "connectionState"):
            evolution.arm("db_down", operation=operation, times=None)
        command = await publish(redis, delete(made.instance_name))

        async def held() -> bool:
            saga = await find_saga(pool, command)
            return saga is not None and saga.code == "evolution_unavailable"

        await eventually(held)
        assert await rows(pool) == 1
        evolution.disarm()
        await evolution.restart()
        assert (await outcome(pool, command)).status == "completed"
    assert not evolution.rows()
    assert await rows(pool) == 0


async def test_a_cancel_that_follows_its_create_at_once_is_not_too_early(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    command: dict[str, Any] = create()
    evolution.arm("slow", operation="create", seconds=0.5)
    cancel = {"id": "stop", "type": "saga.cancel", "data": {"saga_id": command["id"]}}
    for message in (command, cancel):
        await streams.publish_command(redis, message)
    async with running_worker(settings):
        saga = await outcome(pool, command["id"])
        await eventually(lambda: nothing_pending(redis))
    assert (saga.status, saga.code) == ("compensated", "cancelled")
    assert await dead_letters(redis) == []
    assert not evolution.rows()


async def test_the_id_of_a_cancel_can_not_be_used_for_something_else(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    command: dict[str, Any] = create()
    evolution.arm("slow", operation="create", seconds=0.5)
    wish = {"saga_id": command["id"]}
    async with running_worker(settings):
        await publish(redis, command)
        await publish(redis, {"id": command["id"], "type": "saga.cancel", "data": wish})
        await publish(redis, {"id": "stop", "type": "saga.cancel", "data": wish})
        await publish(redis, {"id": "stop", "type": "saga.cancel", "data": wish})
        await publish(redis, {"id": "stop", "type": "saga.replay", "data": wish})
        saga = await outcome(pool, command["id"])
        await eventually(lambda: nothing_pending(redis))
    assert saga.status == "compensated"
    told = await story(pool, saga)
    assert told.count("saga.cancel_requested") == 1
    codes = [letter["code"] for letter in await dead_letters(redis)]
    assert codes == ["conflicting_duplicate"] * 2


async def test_a_refused_delete_does_not_hide_the_saga_of_the_instance(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        assert made.instance_name
        stranger = create()["data"]["organization_id"]
        refused = await publish(redis, delete(made.instance_name, organization_id=stranger))
        assert (await outcome(pool, refused)).status == "rejected"
    found = await find_saga(pool, made.instance_name)
    assert found is not None
    assert found.saga_id == made.saga_id
