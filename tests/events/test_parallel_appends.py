"""Appends that commit in parallel: nothing is skipped, whoever is late, killed or succeeded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

import evosaga.events.relay
from evosaga import migrations
from evosaga.events import append_order, streams
from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog, VersionConflict
from evosaga.events.relay import Relay
from evosaga.orchestrator.local.postgres import SETTINGS, local_postgres
from tests.conftest import Servers
from tests.events.test_relay import (
    assert_in_order,
    committed,
    first_sights,
    new_saga,
    pumped,
    running,
    tell,
    told,
)
from tests.support import appenders
from tests.support.appenders import appender, kill_some, new_sagas
from tests.support.sampled import sampled
from tests.support.waiting import eventually

INSERT: Final = """
INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
VALUES ($1, $2, 'saga.completed', '{}', 'c')
"""


@pytest.fixture
async def parallel(pool: Pool) -> None:
    assert (await append_order.switch(pool, parallel=True)).parallel


@contextlib.asynccontextmanager
async def appending(url: str, saga: UUID, *sequences: int) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose transaction has appended; whoever uses it ends the transaction."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        for sequence in sequences:
            await connection.execute(INSERT, saga, sequence)
        yield connection
    finally:
        connection.terminate()


async def pumping(relay: Relay, over: asyncio.Event) -> None:
    """A relay that looks all the time and is never cut short."""
    while not over.is_set():
        await pumped(relay)
        await asyncio.sleep(0.003)


async def ids(redis: Redis) -> list[str]:
    return first_sights(await told(redis))


async def everything(redis: Redis, pool: Pool, seconds: float = 15.0) -> None:
    """All is published, and first seen by position, which is each saga's order, too."""
    wanted = await committed(pool)
    await eventually(lambda: _reached(redis, wanted), seconds, message="all events")
    seen = await ids(redis)
    assert seen == wanted
    assert_in_order(seen)


async def _reached(redis: Redis, wanted: list[str]) -> bool:
    return await redis.xlen(streams.EVENTS) >= len(wanted) and set(await ids(redis)) == set(wanted)


@pytest.mark.fault("e9", "v1")
@pytest.mark.usefixtures("parallel")
async def test_others_commit_past_an_append_under_way_and_its_events_are_not_skipped(
    log: EventLog, pool: Pool, redis: Redis, database_url: str
) -> None:
    early, slow, late = [await new_saga(pool) for _ in range(3)]
    relay = Relay(pool, redis, "me")
    await tell(log, early, 0)
    async with appending(database_url, slow, 0, 1) as connection:
        await asyncio.wait_for(tell(log, late, 0), 5)
        await pumped(relay)
        assert await ids(redis) == [f"{early}:0"]
        await connection.execute("COMMIT")
        await pumped(relay)
    assert await ids(redis) == [f"{early}:0", f"{slow}:0", f"{slow}:1", f"{late}:0"]


@pytest.mark.usefixtures("parallel")
@pytest.mark.parametrize("end", ["rollback", "kill", "savepoint", "crash of the relay"])
async def test_positions_that_nobody_has_any_more_hold_nothing_back(
    end: str, log: EventLog, pool: Pool, redis: Redis, database_url: str
) -> None:
    gone, late = await new_saga(pool), await new_saga(pool)
    relay = Relay(pool, redis, "me")
    async with appending(database_url, gone, *([] if end == "savepoint" else [0])) as connection:
        if end == "savepoint":
            await connection.execute("SAVEPOINT one")
            await connection.execute(INSERT, gone, 0)
        await tell(log, late, 0)
        await pumped(relay)
        assert await ids(redis) == []
        if end == "rollback":
            await connection.execute("ROLLBACK")
        elif end == "kill":
            pid = connection.get_server_pid()
            assert await pool.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
        elif end == "savepoint":
            await connection.execute("ROLLBACK TO one")
            await connection.execute(INSERT, gone, 0)
            await tell(log, late, 1)
            await pumped(relay)
            assert await ids(redis) == [f"{late}:0"], "what was drawn again is still to come"
            await connection.execute("COMMIT")
        else:
            await connection.execute("ROLLBACK")
            await relay.resign()
            relay = Relay(pool, redis, "heir")
        await pumped(relay)
    assert await ids(redis) == await committed(pool)


@pytest.mark.usefixtures("parallel")
async def test_a_relay_at_rest_publishes_soon_after_what_held_it_back_is_over(
    log: EventLog, pool: Pool, redis: Redis, database_url: str
) -> None:
    slow, late = await new_saga(pool), await new_saga(pool)
    async with running(Relay(pool, redis, "me")):
        async with appending(database_url, slow, 0) as connection:
            await tell(log, late, 0)
            await connection.execute("COMMIT")
        await everything(redis, pool, 3)


@pytest.mark.usefixtures("parallel")
async def test_an_older_snapshot_appends_alone(pool: Pool, database_url: str) -> None:
    """Its reading of the mode may be out of date."""
    one, two = await new_saga(pool), await new_saga(pool)
    connection = await asyncpg.connect(database_url)
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute(INSERT, one, 0)
        tried = "SELECT pg_try_advisory_xact_lock_shared($1)"
        assert not await pool.fetchval(tried, append_order.LOCK)
    await pool.execute(INSERT, two, 0)
    await connection.close()


@pytest.mark.fault("e9", "g2")
@pytest.mark.parametrize("orders", sampled([[True], [True, False]], keep=[[True, False]]))
async def test_many_appenders_and_a_relay_that_is_succeeded(
    orders: list[bool],
    pool: Pool,
    redis: Redis,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random pauses, rollbacks and killed backends; with two orders it is switched meanwhile."""
    monkeypatch.setattr(evosaga.events.relay, "_BATCH", 40)
    await append_order.switch(pool, parallel=True)
    sagas, seconds = await new_sagas(pool, 30), 2.0

    async def switches_and_successions() -> None:
        for number in range(8):
            await asyncio.sleep(seconds / 8)
            await append_order.switch(pool, parallel=orders[number % len(orders)])
            await pool.execute("UPDATE evosaga.relay SET leader = NULL")

    many = asyncio.gather(*(appender(database_url, sagas, seed, seconds, 8) for seed in range(6)))
    killing = kill_some(pool, 1, seconds, 0.2)
    over = asyncio.Event()
    relays = asyncio.gather(*(pumping(Relay(pool, redis, f"relay-{n}"), over) for n in range(2)))
    _, killed, _ = await asyncio.gather(many, killing, switches_and_successions())
    await everything(redis, pool)
    over.set()
    await relays
    assert killed, "no backend was killed"


@pytest.mark.long
async def test_many_processes_append_for_a_while(
    pool: Pool, redis: Redis, database_url: str, servers: Servers
) -> None:
    """The same with processes of their own, and relays that are killed."""
    await append_order.switch(pool, parallel=True)
    await new_sagas(pool, 150)
    seconds, redis_url = 40.0, servers.redis
    appending = [await appenders.start(database_url, n, seconds, 8) for n in range(4)]
    killing = asyncio.create_task(kill_some(pool, 2, seconds, 0.3))
    relays = [await appenders.start_relay(database_url, redis_url) for _ in range(2)]
    try:
        while any(process.returncode is None for process in appending):
            await asyncio.sleep(2)
            relays[0].kill()
            await relays.pop(0).wait()
            relays.append(await appenders.start_relay(database_url, redis_url))
        await everything(redis, pool, 60)
    finally:
        for relay in relays:
            relay.kill()
            await relay.wait()
    assert await killing > 20
    assert [process.returncode for process in appending] == [0] * 4


@pytest.mark.long
async def test_a_prepared_append_holds_back_what_follows_until_it_is_decided(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a crash of Postgres, too."""
    monkeypatch.setitem(SETTINGS, "max_prepared_transactions", "5")
    with local_postgres() as server:
        await migrations.migrate(server.url)
        pool = await open_pool(server.url)
        await append_order.switch(pool, parallel=True)
        slow, late = await new_saga(pool), await new_saga(pool)
        async with appending(server.url, slow, 0) as connection:
            await connection.execute("PREPARE TRANSACTION 'one'")
        await pool.execute(INSERT, late, 0)
        await pumped(Relay(pool, redis, "me"))
        await pool.close()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start_again)
        pool = await open_pool(server.url)
        await pool.execute("UPDATE evosaga.relay SET leader = NULL")
        await pumped(Relay(pool, redis, "heir"))
        assert await ids(redis) == []
        assert (await append_order.read(pool)).longest.total_seconds() > 0
        await pool.execute("COMMIT PREPARED 'one'")
        await pumped(Relay(pool, redis, "heir"))
        assert await ids(redis) == [f"{slow}:0", f"{late}:0"]
        await pool.close()


@pytest.mark.usefixtures("parallel")
async def test_two_batches_of_the_same_sagas_settle_without_an_error(pool: Pool) -> None:
    """Each saga's append is won by one of both, whatever order they name them in."""
    logs = [EventLog(pool), EventLog(pool)]
    tasks = [asyncio.create_task(log.run()) for log in logs]
    sagas = await new_sagas(pool, 30)
    for at in range(5):
        both = [
            append(log, saga, at)
            for log, order in zip(logs, (sagas, sagas[::-1]), strict=True)
            for saga in order
        ]
        assert sum(await asyncio.gather(*both)) == len(sagas)
    for task in tasks:
        task.cancel()
    assert await pool.fetchval("SELECT count(*) FROM evosaga.saga_events") == 5 * len(sagas)


async def append(log: EventLog, saga: UUID, at: int) -> bool:
    """Whether it has won."""
    with contextlib.suppress(VersionConflict):
        await tell(log, saga, at)
        return True
    return False
