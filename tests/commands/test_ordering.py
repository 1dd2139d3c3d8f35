"""Commands about the same keep their order, whichever workers read them."""

import asyncio
import json
import os
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.accept
import evosaga.orchestrator.commands.consumer
import evosaga.orchestrator.commands.handler
from evosaga.events import streams
from evosaga.events.commands import read_command
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands import ordering
from evosaga.orchestrator.commands.accept import Request
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from tests.harness.chaos.victim import victim
from tests.support.driving import (
    contradictions,
    count,
    create,
    dead_letters,
    delete,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 1.0)


@pytest.fixture
def slow_creates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who accepts creates is held for a moment before its commit."""
    real = evosaga.orchestrator.commands.accept.accept

    async def held(pool: Any, services: Any, worker: str, requests: list[Request]) -> Any:
        if any(request.command.type == "integration.create" for request in requests):
            await asyncio.sleep(random.uniform(0.0, 0.15))  # the hold itself
        return await real(pool, services, worker, requests)

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "accept", held)


@pytest.fixture
async def two_workers(settings: Settings) -> AsyncIterator[None]:
    async with running_worker(settings), running_worker(settings):
        yield


async def read_by_the_dead(redis: Redis, command: dict[str, Any]) -> bytes:
    """Publish a command that is handed to a consumer which never does anything with it."""
    await streams.ensure_group(redis)
    await publish(redis, command)
    told: Any = await redis.xreadgroup(streams.GROUP, "the-dead", {streams.COMMANDS: ">"})
    [(_, [(message_id, _)])] = told
    return bytes(message_id)


def pair(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A create and the delete right behind it, which names what is made in one of four ways."""
    named = {} if number % 2 else {"instance_name": f"clinic-{uuid.uuid4().hex[:12]}"}
    first = create(**named)
    if number % 4 == 3:
        first["id"] = f"order-{uuid.uuid4()}"  # the saga's id is derived from it, and so the name
    saga = read_command(json.dumps(first).encode()).saga_id
    about = {"organization_id": first["data"]["organization_id"]} if number % 3 else {}
    return first, delete(named.get("instance_name", f"wa-{saga}"), **about)


@pytest.mark.parametrize("many", [40, pytest.param(200, marks=pytest.mark.long)])
async def test_deletes_right_behind_their_creates_are_all_obeyed_by_two_workers(
    slow_creates: None,
    two_workers: None,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    many: int,
) -> None:
    pairs = [pair(number) for number in range(many)]
    for first, second in pairs:
        await publish(redis, first)
        await publish(redis, second)
        await asyncio.sleep(0.005)  # so that they come to both workers
    for first, second in pairs:
        made, deleted = [await outcome(pool, c["id"], 90) for c in (first, second)]
        assert made.status in ("completed", "compensated"), made
        assert (deleted.status, deleted.code) == ("completed", None), deleted
    await eventually(lambda: nothing_pending(redis))
    assert await dead_letters(redis) == []
    assert evolution.live() == {}
    assert await count(pool, "SELECT count(*) FROM healthcare.integrations") == 0
    assert await contradictions(pool) == []


async def test_a_create_right_behind_a_delete_is_told_of_the_delete_by_any_worker(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Else it would be told that there is an integration, which is to be deleted first."""
    first = create(instance_name="clinic-sol")
    organization = first["data"]["organization_id"]
    async with running_worker(settings):
        await outcome(pool, await publish(redis, first))
    evolution.arm("licence", operation="delete", times=None)
    held = await read_by_the_dead(redis, delete("clinic-sol"))
    async with running_worker(settings):
        later = create(organization_id=organization)
        told = await outcome(pool, await publish(redis, later))
        evolution.disarm()
        assert (told.status, told.code) == ("rejected", "in_progress")
        assert "(delete-integration) of this organization is at work" in str(told.message)
        await eventually(lambda: nothing_pending(redis), 20)
    assert held < (await redis.xinfo_stream(streams.COMMANDS))["last-generated-id"]


async def test_a_cancel_right_behind_its_create_is_obeyed_though_nobody_knows_the_saga_yet(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("licence", operation="create", times=None)
    command = create()
    await read_by_the_dead(redis, command)
    for more in ({}, {"if_possible": True}):
        wish = {"saga_id": command["id"]} | more
        await publish(redis, {"id": str(uuid.uuid4()), "type": "saga.cancel", "data": wish})
    async with running_worker(settings):
        assert (await outcome(pool, command["id"])).status == "compensated"
        await eventually(lambda: nothing_pending(redis))
    codes = [letter["code"] for letter in await dead_letters(redis)]
    assert "unknown_saga" not in codes


async def test_wishes_of_one_batch_do_not_wait_for_each_other(
    settings: Settings, redis: Redis, pool: Pool
) -> None:
    command = create()
    wishes = [
        {"id": f"w{n}", "type": f"saga.{what}", "data": {"saga_id": command["id"]}}
        for n, what in enumerate(("replay", "cancel", "replay", "cancel"))
    ]
    async with running_worker(settings):
        await outcome(pool, await publish(redis, command))
        await streams.publish_commands(redis, wishes)
        await eventually(lambda: nothing_pending(redis))
    letters = await dead_letters(redis)
    said = [(json.loads(letter["data"])["id"], letter["code"]) for letter in letters]
    codes = ("not_replayable", "not_cancellable")
    assert said == [(f"w{n}", codes[n % 2]) for n in range(4)]


async def test_of_one_batch_a_delete_that_came_first_deletes_nothing(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    first, second = delete("clinic-sol"), create(instance_name="clinic-sol")
    third = delete("clinic-sol")
    await streams.publish_commands(redis, [first, second])
    async with running_worker(settings):
        refused = await outcome(pool, first["id"])
        assert (refused.status, refused.code) == ("rejected", "not_found")
        assert (await outcome(pool, second["id"])).status == "completed"
        assert (await outcome(pool, await publish(redis, third))).status == "completed"


async def test_what_waits_keeps_those_behind_it_in_their_place(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    """A delete that waits for a create of its name is not overtaken by a create of that name."""
    first = create(instance_name="clinic-sol")
    behind, last = delete("clinic-sol"), create(instance_name="clinic-sol")
    await read_by_the_dead(redis, first)
    await streams.publish_commands(redis, [behind, last])
    async with running_worker(settings):
        assert (await outcome(pool, behind["id"])).status == "completed"
        told = await outcome(pool, last["id"])
        assert (told.status, told.code) == ("rejected", "name_taken"), told
        assert (await outcome(pool, first["id"])).status in ("completed", "compensated")


async def test_a_worker_that_stopped_before_its_commit_is_waited_for_and_then_followed(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    tmp_path: Path,
) -> None:
    command = create()
    await publish(redis, command)
    armed = {"at": "acc.pre", "do": "stop", "once": str(tmp_path / "struck")}
    zombie = victim(settings, [armed], tmp_path / "log")
    try:
        await eventually((tmp_path / "struck").exists, 20, message="it to stop")
        async with running_worker(settings):
            deleted = await outcome(pool, await publish(redis, delete(f"wa-{command['id']}")), 30)
            assert (deleted.status, deleted.code) == ("completed", None)
            assert zombie.pid is not None
            os.kill(zombie.pid, SIGCONT)
            await eventually(lambda: nothing_pending(redis), 20)
    finally:
        assert zombie.pid is not None
        os.kill(zombie.pid, SIGKILL)
        zombie.join()
    assert evolution.live() == {}
    assert await contradictions(pool) == []


async def test_what_is_about_something_else_holds_up_no_refusal(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 3600.0)
    await read_by_the_dead(redis, create())
    await redis.xadd(streams.COMMANDS, {"data": "no json"})
    await redis.xreadgroup(streams.GROUP, "the-dead", {streams.COMMANDS: ">"})
    async with running_worker(settings):
        told = await outcome(pool, await publish(redis, delete("clinic-sol")), 5)
    assert (told.status, told.code) == ("rejected", "not_found")


async def test_what_is_accepted_is_not_looked_at_twice(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 3600.0)
    accepted: list[int] = []
    real = evosaga.orchestrator.commands.accept.accept

    async def counted(pool: Any, services: Any, worker: str, requests: list[Request]) -> Any:
        accepted.append(len(requests))
        return await real(pool, services, worker, requests)

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "accept", counted)
    commands = [create() for _ in range(20)]
    await streams.publish_commands(redis, commands)
    await redis.config_resetstat()
    async with running_worker(settings):
        for command in commands:
            assert (await outcome(pool, command["id"])).status == "completed"
        stats: Any = await redis.info("commandstats")
    assert accepted == [20]
    assert "cmdstat_xrange" not in stats


async def test_nobody_waits_for_ever(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 3600.0)
    monkeypatch.setattr(ordering, "LONGEST", 1.0)
    command = create(instance_name="clinic-sol")
    message = await read_by_the_dead(redis, command)
    wish = {"id": "cancel", "type": "saga.cancel", "data": {"saga_id": command["id"]}}
    async with running_worker(settings):
        await publish(redis, wish)
        id_ = await publish(redis, delete("clinic-sol"))
        # Neither holds up what comes behind it.
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        told = await outcome(pool, id_)
        assert (told.status, told.code) == ("rejected", "not_found")
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))

        async def only_its_own() -> bool:  # a letter is written before its message is acknowledged
            return list(await streams.pending(redis)) == [message]

        await eventually(only_its_own)
    [letter] = await dead_letters(redis)
    assert letter["code"] == "unknown_saga"


async def test_a_worker_that_stops_leaves_what_waits_to_the_next_one(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 3600.0)
    command = create(instance_name="clinic-sol")
    await read_by_the_dead(redis, command)
    behind = delete("clinic-sol")

    async def kept() -> bool:
        return len(await streams.pending(redis)) == 2

    async with running_worker(settings):
        await publish(redis, behind)
        await eventually(kept)
    assert await find_saga(pool, behind["id"]) is None
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.3)
    async with running_worker(settings):
        assert (await outcome(pool, behind["id"])).status == "completed"
