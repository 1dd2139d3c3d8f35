"""The product behind a pooler in transaction mode: no session of ours outlives a transaction."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import streams
from evosaga.events.database import Pool, behind_pooler
from evosaga.orchestrator.api.server import address, bind
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.recovery.conftest import WorkerProcess
from tests.support.commandline import commandline
from tests.support.driving import (
    contradictions,
    count,
    create,
    delete,
    entries,
    impatient,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually
from tests.support.workers import Worker
from tests.whatsapp.webhooks.conftest import open_house


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings, impatient()) as worker:
        yield worker


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0) as listener:
        yield listener


async def test_it_is_noticed(pooled_url: str, database_url: str) -> None:
    assert await behind_pooler(pooled_url)
    assert not await behind_pooler(database_url)


@pytest.mark.fault("o1")
async def test_instances_are_created_and_deleted_and_every_event_is_told(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    ids = [await publish(redis, create()) for _ in range(20)]
    made = [await outcome(pool, id_) for id_ in ids]
    assert {saga.status for saga in made} == {"completed"}
    gone = [await publish(redis, delete(str(saga.instance_name))) for saga in made[:10]]
    for id_ in gone:
        assert (await outcome(pool, id_)).status == "completed"
    assert set(evolution.live()) == {saga.instance_name for saga in made[10:]}
    recorded = await count(pool, "SELECT count(*) FROM evosaga.saga_events")

    async def all_told() -> bool:
        return len(await entries(redis, streams.EVENTS)) >= recorded

    await eventually(all_told, message="every event to be told")
    await eventually(lambda: nothing_pending(redis))
    assert await contradictions(pool, impatient()) == []
    assert not worker.failed.done()


@pytest.mark.fault("o1")
async def test_what_fails_for_good_is_undone(
    worker: Worker, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    command = create()
    # The mark of a removal has the wrong type, so the step that fills the cache stumbles.
    await redis.rpush(f"evosaga:removed:wa-{command['id']}", "not a string")
    assert (await outcome(pool, await publish(redis, command))).status == "compensated"
    assert evolution.rows() == {}
    assert await count(pool, "SELECT count(*) FROM healthcare.integrations") == 0
    assert await contradictions(pool, impatient()) == []


@pytest.mark.fault("o1")
async def test_what_a_killed_worker_leaves_is_taken_over(
    spawn: Callable[[], WorkerProcess],
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    evolution.arm("hang_after", operation="create")
    first = spawn()
    await eventually(lambda: first.up, 20)
    id_ = await publish(redis, create())
    await eventually(lambda: f"wa-{id_}" in evolution.live())
    first.kill()
    async with running_worker(settings):
        assert (await outcome(pool, id_)).status == "completed"
    assert len(evolution.journal.requests("create")) == 1
    assert await contradictions(pool) == []


@pytest.mark.fault("o1")
async def test_webhooks_come_in_and_are_applied(
    settings: Settings, listener: socket.socket, evolution: SimulatedEvolution
) -> None:
    more = {"api_keys": f"tests:{'k' * 40}", "public_url": address(listener)}
    given = Settings.model_validate(settings.model_dump() | more)
    async with open_house(given, listener, evolution) as house:
        name = await house.integration()
        evolution.pair(name, "5511988887777:3")
        assert (await house.becomes(name, "connected"))["whatsapp_number"] == "5511988887777"
        await house.all_applied()


@pytest.mark.fault("o2", "o3")
async def test_two_workers_leave_no_lock_no_listener_and_no_setting_in_what_they_share(
    settings: Settings, worker: Worker, pool: Pool, redis: Redis, pooled_url: str
) -> None:
    """A lock of a session would be held by nobody for ever; a setting, met by a stranger."""
    async with running_worker(settings, impatient()):
        ids = [await publish(redis, create()) for _ in range(20)]
        for id_ in ids:
            assert (await outcome(pool, id_)).status == "completed"

        async def no_lock() -> bool:
            query = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            return await count(pool, query) == 0

        await eventually(no_lock, message="no advisory lock to outlive its transaction")
        # All at once, so that every connection behind it is looked at.
        seen = await asyncio.gather(*(session(pooled_url) for _ in range(12)))
    assert {settings for settings, _ in seen} == {()}
    assert {channels for _, channels in seen} == {0}


async def session(url: str) -> tuple[tuple[str, ...], int]:
    """What a stranger finds set and listened to in the session that it is given.

    ``jit`` is set and set back by asyncpg itself, and changes no answer.
    """
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        async with connection.transaction():
            rows = await connection.fetch(
                "SELECT name FROM pg_settings WHERE source = 'session' "
                "AND setting IS DISTINCT FROM reset_val AND name <> 'jit' ORDER BY name"
            )
            channels = await connection.fetchval("SELECT count(*) FROM pg_listening_channels()")
            await connection.execute("SELECT pg_sleep(0.05)")
            return tuple(row["name"] for row in rows), channels
    finally:
        await connection.close()


@pytest.mark.parametrize("mode", ["statement"])
async def test_statement_mode_is_refused_by_every_verb_with_a_sentence(
    pooled_url: str, tmp_path: Path, settings: Settings
) -> None:
    evosaga = commandline(tmp_path, settings)
    verbs = (["migrate"], ["worker"], ["list"], ["doctor"], ["status", "x"], ["reconcile"])
    for verb in verbs:
        ran = await evosaga(*verb)
        assert ran.code == (1 if verb == ["doctor"] else 2), (verb, ran)
        assert "is in statement mode" in ran.out + ran.err
        assert "pool_mode = transaction" in ran.out + ran.err


async def test_a_migration_works_through_it(pooled_url: str, pool: Pool) -> None:
    await pool.execute("DROP SCHEMA evosaga, healthcare CASCADE")
    await migrations.migrate(pooled_url, "0004")
    await migrations.migrate(pooled_url)
    async with pool.acquire() as connection:
        await migrations.require_current(connection)
