"""The command stream when Redis misbehaves: nothing that was published is lost to us."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.consumer
from evosaga.events import dead_letters, streams
from evosaga.events.database import Pool
from evosaga.events.dead_letters import DeadLetter
from evosaga.events.retention import Retention, trim
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from tests.support.driving import (
    contradictions,
    count,
    create,
    entries,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually
from tests.support.workers import Worker


@pytest.fixture
def settings(settings: Settings, own_valkey: LocalServer) -> Settings:
    """On a Valkey that nobody else uses."""
    return settings.model_copy(update={"redis_url": own_valkey.url})


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings) as worker:
        yield worker


async def completed(pool: Pool, redis: Redis, timeout: float = 15.0) -> None:
    saga = await outcome(pool, await publish(redis, create()), timeout)
    assert saga.status == "completed", saga


@pytest.mark.fault("v3")
async def test_the_group_begins_at_the_first_command_and_is_made_once(own_redis: Redis) -> None:
    await publish(own_redis, create())
    assert await streams.backlog(own_redis) is None
    assert [await streams.ensure_group(own_redis) for _ in range(3)] == [True, False, False]
    assert await streams.backlog(own_redis) is not None
    [group] = await own_redis.xinfo_groups(streams.COMMANDS)
    assert (group["last-delivered-id"], group["lag"]) == (b"0-0", 1)


@pytest.mark.fault("h2")
async def test_after_flushall_the_worker_comes_back_by_itself(
    worker: Worker, pool: Pool, own_redis: Redis
) -> None:
    await completed(pool, own_redis)
    await own_redis.flushall()
    early = await publish(own_redis, create())  # before anybody noticed
    assert (await outcome(pool, early)).status == "completed"
    await completed(pool, own_redis)
    await eventually(lambda: worker.reader.healthy)
    await eventually(lambda: nothing_pending(own_redis))
    await own_redis.delete(streams.COMMANDS)
    await completed(pool, own_redis)
    assert not worker.failed.done()


@pytest.mark.fault("h1")
async def test_after_a_crash_of_redis_the_worker_goes_on(
    worker: Worker,
    pool: Pool,
    own_redis: Redis,
    own_valkey: LocalServer,
    evolution: SimulatedEvolution,
) -> None:
    """A saga that is under way waits for Redis; its instance is not destroyed for that."""
    await completed(pool, own_redis)
    evolution.arm("slow_after", operation="create", seconds=0.3)
    waiting = await publish(own_redis, create())
    await eventually(lambda: f"wa-{waiting}" in evolution.live())
    await asyncio.to_thread(own_valkey.kill)

    async def held() -> bool:
        return (
            await count(
                pool,
                "SELECT count(*) FROM evosaga.saga_events WHERE saga_id = $1 "
                "AND type = 'step.failed' AND data ->> 'code' = 'redis_unavailable'",
                uuid.UUID(waiting),
            )
            > 0
        )

    await eventually(held)
    await asyncio.to_thread(own_valkey.start_again)
    began = time.perf_counter()
    saga = await outcome(pool, waiting, 20)
    assert saga.status == "completed", saga
    await completed(pool, own_redis, 20)
    print(f"went on {time.perf_counter() - began:.1f} s after Redis was back")
    assert await own_redis.exists(f"whatsapp:instance:wa-{waiting}")
    assert not worker.failed.done()
    assert await contradictions(pool) == []


@pytest.mark.fault("h6")
async def test_a_redis_that_is_full_holds_sagas_and_is_no_reason_to_undo_them(
    worker: Worker, pool: Pool, own_redis: Redis
) -> None:
    command = await publish(own_redis, create())
    await own_redis.config_set("maxmemory", 1)

    async def begun() -> bool:
        return bool(await pool.fetchval("SELECT count(*) FROM evosaga.sagas"))

    await eventually(begun)
    await own_redis.config_set("maxmemory", 0)
    assert (await outcome(pool, command)).status == "completed"


@pytest.mark.fault("a6")
async def test_a_message_whose_reader_died_is_taken_by_another(
    settings: Settings, pool: Pool, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by a consumer that is gone, accepted by nobody: the pending entry is claimed."""
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.5)
    await streams.ensure_group(own_redis)
    ids = [await publish(own_redis, create()) for _ in range(5)]
    await own_redis.xreadgroup(streams.GROUP, "the-dead", {streams.COMMANDS: ">"}, count=10)
    async with running_worker(settings):
        for id_ in ids:
            assert (await outcome(pool, id_)).status == "completed"
        await eventually(lambda: nothing_pending(own_redis))


@pytest.mark.fault("h9")
async def test_an_entry_that_was_deleted_while_pending_does_not_stop_the_reclaimer(
    settings: Settings, pool: Pool, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.5)
    await streams.ensure_group(own_redis)
    ids = [await publish(own_redis, create()) for _ in range(3)]
    await own_redis.xreadgroup(streams.GROUP, "the-dead", {streams.COMMANDS: ">"}, count=10)
    first, second, _ = [id_ for id_, _ in await entries(own_redis, streams.COMMANDS)]
    await own_redis.xdel(streams.COMMANDS, first, second)
    async with running_worker(settings):
        assert (await outcome(pool, ids[2])).status == "completed"
        await eventually(lambda: nothing_pending(own_redis))


@pytest.mark.fault("r13")
async def test_trimming_never_takes_what_is_unread_or_pending(own_redis: Redis) -> None:
    old = "1000-{}"  # written in 1970
    for i in range(1, 401):
        await own_redis.xadd(streams.COMMANDS, {"data": "{}"}, id=old.format(i))
    await streams.ensure_group(own_redis)

    async def read(most: int) -> list[bytes]:
        answer: Any = await own_redis.xreadgroup(
            streams.GROUP, "w", {streams.COMMANDS: ">"}, count=most
        )
        return [id_ for id_, _ in answer[0][1]]

    await trim(own_redis, streams.COMMANDS, Retention(3600))
    assert await own_redis.xlen(streams.COMMANDS) == 400
    ids = await read(300)
    await streams.acknowledge(own_redis, ids[:200])
    await trim(own_redis, streams.COMMANDS, Retention(3600))
    left = [id_ for id_, _ in await entries(own_redis, streams.COMMANDS)]
    assert set(ids[200:]) <= set(left)
    assert len(left) < 400
    await streams.acknowledge(own_redis, ids[200:])
    await trim(own_redis, streams.COMMANDS, Retention(3600))
    assert len(await read(1000)) == 100


@pytest.mark.fault("h11", "h12")
async def test_silent_consumers_are_forgotten_unless_they_own_something(
    own_redis: Redis,
) -> None:
    await publish(own_redis, create())
    await streams.ensure_group(own_redis)
    await own_redis.xreadgroup(streams.GROUP, "owner", {streams.COMMANDS: ">"}, count=1)
    for name in ("idle-1", "idle-2"):
        await own_redis.xgroup_createconsumer(streams.COMMANDS, streams.GROUP, name)
    await streams.drop_idle_consumers(own_redis, idle_seconds=3600)
    assert len(await own_redis.xinfo_consumers(streams.COMMANDS, streams.GROUP)) == 3
    await streams.drop_idle_consumers(own_redis, idle_seconds=-1)
    [left] = await own_redis.xinfo_consumers(streams.COMMANDS, streams.GROUP)
    assert (left["name"], left["pending"]) == (b"owner", 1)


async def test_the_backlog_says_how_far_behind_we_are(own_redis: Redis) -> None:
    assert await streams.backlog(own_redis) is None
    for _ in range(3):
        await publish(own_redis, create())
    await streams.ensure_group(own_redis)
    read: Any = await own_redis.xreadgroup(streams.GROUP, "w", {streams.COMMANDS: ">"}, count=2)
    [(first, _), _] = read[0][1]
    await dead_letters.publish(own_redis, [DeadLetter("1-1", os.urandom(8), {}, "c", "m", 1)])
    await streams.acknowledge(own_redis, [first])
    backlog = await streams.backlog(own_redis)
    assert backlog == streams.Backlog(length=3, lag=1, pending=1, consumers=1, dead=1)
