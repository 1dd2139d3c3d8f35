"""``not_accepted`` is for what was not: a command that was committed is never called dead."""

import uuid
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.accept
import evosaga.orchestrator.commands.consumer
import evosaga.orchestrator.commands.control
import evosaga.orchestrator.commands.handler
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.accept import Request
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.support.driving import create, dead_letters, nothing_pending, outcome, publish
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.3)


async def test_a_command_that_was_committed_before_we_stumbled_is_no_dead_letter(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = evosaga.orchestrator.commands.accept.accept, 0

    async def stumble(pool: Any, services: Any, worker: str, requests: list[Request]) -> Any:
        nonlocal tries
        await real(pool, services, None, requests)
        tries += 1
        raise RuntimeError("a bug, after the commit")

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "accept", stumble)
    command = create()
    await publish(redis, command)
    async with running_worker(settings):
        assert (await outcome(pool, command["id"])).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    assert tries == 3
    assert await dead_letters(redis) == []


async def test_a_cancel_that_was_obeyed_before_we_stumbled_is_no_dead_letter(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = evosaga.orchestrator.commands.control.apply_control

    async def stumble(*given: Any) -> Any:
        await real(*given)
        raise RuntimeError("a bug, after the commit")

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "apply_control", stumble)
    evolution.arm("licence", operation="create", times=None)
    command = create()
    await publish(redis, command)
    async with running_worker(settings):
        await publish(
            redis,
            {
                "id": str(uuid.uuid4()),
                "type": "saga.cancel",
                "data": {"saga_id": command["id"]},
            },
        )
        assert (await outcome(pool, command["id"])).status == "compensated"
        await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []


async def test_who_keeps_losing_against_others_is_no_poison(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = evosaga.orchestrator.commands.accept.accept, 0

    async def lose(pool: Any, services: Any, worker: str, requests: list[Request]) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 4:
            raise asyncpg.UniqueViolationError("somebody else was quicker")
        return await real(pool, services, worker, requests)

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "accept", lose)
    command = create()
    await publish(redis, command)
    async with running_worker(settings):
        assert (await outcome(pool, command["id"])).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []


async def test_a_command_whose_status_row_is_lost_holds_up_nobody(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its history is there, so it can't begin again, however often that is tried."""
    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "_RIVALS", 1)
    command = create()
    async with running_worker(settings):
        await outcome(pool, await publish(redis, command))
        await pool.execute("DELETE FROM evosaga.sagas")
        await publish(redis, command)
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        await eventually(lambda: nothing_pending(redis))
    assert [letter["code"] for letter in await dead_letters(redis)] == ["not_accepted"]
