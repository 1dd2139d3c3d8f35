"""What a process runs out of, loses track of, or is kept from by others: it goes on by itself."""

import asyncio
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

import evosaga.events.database
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.app import Broken, running_worker, serve_until
from evosaga.orchestrator.commands.consumer import CommandConsumer
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from tests.conftest import API_KEY
from tests.recovery.conftest import WorkerProcess
from tests.support.driving import contradictions, count, create, nothing_pending, outcome, publish
from tests.support.waiting import eventually

# -- E10: a transaction that somebody leaves open


@pytest.mark.fault("e10")
async def test_a_long_transaction_that_reads_delays_neither_sagas_nor_the_relay(
    settings: Settings, pool: Pool, redis: Redis, database_url: str
) -> None:
    """Somebody's psql, with a snapshot from before: nothing is read by age of transactions."""
    psql = await asyncpg.connect(database_url)
    transaction = psql.transaction(isolation="repeatable_read")
    await transaction.start()
    assert await psql.fetchval("SELECT count(*) FROM evosaga.saga_events") == 0
    await psql.execute("SELECT pg_current_xact_id()")  # and it counts as a writer
    async with running_worker(settings):
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        behind = (
            "SELECT (SELECT max(position) FROM evosaga.saga_events) - position FROM evosaga.relay"
        )

        async def all_told() -> bool:
            return bool(await pool.fetchval(behind) == 0)

        await eventually(all_told)
    assert await psql.fetchval("SELECT count(*) FROM evosaga.saga_events") == 0
    await transaction.rollback()
    await psql.close()


@pytest.mark.fault("e10")
async def test_whoever_stops_in_the_middle_of_an_append_is_thrown_out_be_it_a_psql(
    settings: Settings, pool: Pool, redis: Redis, database_url: str
) -> None:
    """It holds the lock under which all append, and its time is up long before theirs."""
    psql = await asyncpg.connect(database_url)
    async with running_worker(settings):
        transaction = psql.transaction()
        await transaction.start()
        await psql.execute("INSERT INTO evosaga.saga_events " + _AN_EVENT)
        idle = await psql.fetchval("SHOW idle_in_transaction_session_timeout")
        assert idle == "5s", "the append itself has set it"
        waits = int(evosaga.events.database._SERVER_SETTINGS["lock_timeout"])
        assert waits > 5000
        await psql.execute("SET LOCAL idle_in_transaction_session_timeout = 700")  # for the test
        id_ = await publish(redis, create())

        async def somebody_waits() -> bool:
            return await count(pool, "SELECT count(*) FROM pg_locks WHERE NOT granted") > 0

        await eventually(somebody_waits)
        saga = await outcome(pool, id_)
        assert saga.status == "completed"
        with pytest.raises(evosaga.events.database.TRANSIENT):
            await transaction.commit()
    psql.terminate()
    assert await count(pool, "SELECT count(*) FROM evosaga.saga_events WHERE type = 'paused'") == 0
    assert await contradictions(pool) == []


_AN_EVENT = """(saga_id, sequence, type, data, correlation_id)
VALUES (gen_random_uuid(), 0, 'paused', '{}', 'c')"""


# -- I5: no file descriptors


@pytest.mark.fault("i5")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets us lower another's limits")
async def test_a_worker_without_file_descriptors_waits_for_some_and_undoes_nothing(
    spawn: Callable[[], WorkerProcess], pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    worker = spawn()
    await eventually(lambda: worker.up, 20)
    pid = worker.process.pid
    assert pid is not None
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    in_use = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use, hard))
    ids = [await publish(redis, create()) for _ in range(20)]

    async def held() -> bool:
        query = "SELECT count(*) FROM evosaga.saga_events WHERE data ->> 'outcome' = 'held'"
        return await count(pool, query) > 5

    await eventually(held, 20, message="calls to Evolution to find no descriptor")
    assert evolution.journal.requests("create") == []
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    for id_ in ids:
        assert (await outcome(pool, id_, 40)).status == "completed"
    assert len(evolution.journal.requests("create")) == len(evolution.live()) == 20
    await eventually(lambda: nothing_pending(redis))
    assert await contradictions(pool) == []
    assert worker.leave() == 0


# -- I6: whoever asked is gone


async def heard_of(evolution: SimulatedEvolution, entries: int) -> None:
    """Wait until Evolution has been asked so often."""
    await eventually(lambda: len(evolution.journal.entries) >= entries, every=0.001)


@pytest.mark.fault("i6")
async def test_a_thousand_cancelled_requests_cost_a_client_of_evolution_no_place(
    evolution: SimulatedEvolution,
) -> None:
    evolution.arm("slow", operation="connectionState", times=None, seconds=0.02)
    async with EvolutionApi(evolution.url, API_KEY, timeout=5.0, concurrency=4) as api:
        for _ in range(20):
            asked = [asyncio.create_task(api.memory(f"wa-{n}", "t" * 32)) for n in range(50)]
            # Some are out, some wait for a place, some have an answer on its way.
            await heard_of(evolution, len(evolution.journal.entries) + 1)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        evolution.disarm()
        answers = await asyncio.gather(*(api.memory(f"wa-{n}", "t" * 32) for n in range(40)))
    assert {answer.status for answer in answers} == {404}


@pytest.mark.fault("i6")
async def test_a_thousand_cancelled_queries_cost_a_pool_no_connection(database_url: str) -> None:
    pool = await open_pool(database_url, size=4)

    async def within_a_transaction() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT pg_sleep(0.01)")

    for _ in range(20):
        asked = [asyncio.create_task(within_a_transaction()) for _ in range(50)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    async with asyncio.timeout(15):
        await asyncio.gather(*(within_a_transaction() for _ in range(40)))
    assert pool.get_idle_size() == pool.get_size() <= 4
    idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await count(pool, f"{idle} AND state LIKE 'idle in transaction%'") == 0
    pool.terminate()


# -- I7: a part that ends without a word


@pytest.mark.fault("i7")
async def test_a_subscriber_that_ends_in_good_order_is_started_again(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async with running_worker(settings) as worker:
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        for subscriber in worker.reader._subscribers:
            await subscriber.stop()
        assert not worker.reader.healthy
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        await eventually(lambda: worker.reader.healthy)
        assert not worker.failed.done()


@pytest.mark.fault("i7")
async def test_a_part_that_returns_ends_its_worker_with_an_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for a supervisor to start it again, so never with exit code 0."""

    async def returns(*_: Any) -> None: ...

    monkeypatch.setattr(CommandConsumer, "watch", returns)
    with pytest.raises(Broken, match="watchdog ended: 'it returned'"):
        await asyncio.wait_for(serve_until(asyncio.Event(), settings), 20)
