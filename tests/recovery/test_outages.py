"""Postgres goes away, replies are lost, leases run out: the saga goes on, in its own time."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.accept
import evosaga.orchestrator.commands.handler
from evosaga import migrations
from evosaga.events import streams
from evosaga.events.database import Pool, open_pool
from evosaga.events.relay import Relay
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.commands.results import Accepted, Conflict
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.lease import Lease, LeaseLost
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from tests.support.driving import contradictions, create, entries, outcome, publish, story
from tests.support.waiting import eventually
from tests.support.workers import Worker


def lease_of(worker: Worker) -> Lease:
    return worker.engine._lease


async def heard_of(evolution: SimulatedEvolution, entries: int) -> None:
    """Wait until Evolution has been asked so often."""
    await eventually(lambda: len(evolution.journal.entries) >= entries, 20)


def may_act(lease: Lease) -> bool:
    try:
        lease.check()
    except LeaseLost:
        return False
    return True


@pytest.mark.fault("e1")
async def test_postgres_is_away_for_longer_than_the_lease_and_nothing_is_lost_or_sent(
    settings: Settings, own_postgres: LocalServer, redis: Redis, evolution: SimulatedEvolution
) -> None:
    await migrations.migrate(own_postgres.url)
    pool = await open_pool(own_postgres.url)
    evolution.arm("slow", operation="create", times=None, seconds=0.2)
    evolution.arm("slow_after", operation="create", times=None, seconds=0.2)
    given = settings.model_copy(update={"database_url": own_postgres.url})
    async with running_worker(given) as worker:
        ids = [await publish(redis, create()) for _ in range(20)]
        await eventually(lambda: len(evolution.live()) >= 5)
        await asyncio.to_thread(own_postgres.kill)
        ids += [await publish(redis, create()) for _ in range(20)]
        await eventually(lambda: not may_act(lease_of(worker)))
        lost_at = time.time()
        await eventually(lambda: time.time() - lost_at > 0.5)
        sent = [e for e in evolution.journal.requests() if lost_at < e.received_at]
        assert sent == [], "a worker without a lease has sent something"
        await asyncio.to_thread(own_postgres.start_again)
        back = time.perf_counter()
        for id_ in ids:
            assert (await outcome(pool, id_, 30)).status == "completed"
        print(f"all went on within {time.perf_counter() - back:.1f} s of Postgres being back")
        assert not worker.failed.done()
    assert len(evolution.rows()) == len(evolution.live()) == 40
    assert len([e for e in evolution.journal if e.applied == "created"]) == 40
    assert await contradictions(pool) == []
    pool.terminate()


@pytest.mark.fault("a8")
async def test_a_command_whose_commit_lost_its_reply_is_driven_all_the_same(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed, but the acceptor could not hear it: on the second try it knows the command."""
    real, broken = evosaga.orchestrator.commands.accept.accept, iter([True])

    async def commit_and_break(*arguments: Any) -> Sequence[Accepted | Conflict]:
        answers = await real(*arguments)
        if next(broken, False):
            raise ConnectionResetError
        return answers

    monkeypatch.setattr(evosaga.orchestrator.commands.handler, "accept", commit_and_break)
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    assert (await story(pool, saga)).count("saga.started") == 1


@pytest.mark.fault("e2")
async def test_every_backend_is_killed_again_and_again_and_all_sagas_end(
    settings: Settings, pool: Pool, database_url: str, redis: Redis, evolution: SimulatedEvolution
) -> None:
    admin = await asyncpg.connect(database_url)
    async with running_worker(settings):
        ids = [await publish(redis, create()) for _ in range(60)]
        for kill in range(8):
            await heard_of(evolution, kill * 12)
            await admin.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND application_name = 'evosaga'"
            )
        for id_ in ids:
            assert (await outcome(pool, id_, 30)).status == "completed"
    await admin.close()
    assert len(evolution.rows()) == 60
    assert {len(evolution.journal.requests("create", name)) for name in evolution.rows()} == {1}
    assert await contradictions(pool) == []


@pytest.mark.fault("b6")
async def test_a_lease_that_was_lost_and_is_there_again_gives_no_right_to_an_old_attempt(
    pool: Pool,
) -> None:
    """The heartbeat of a zombie may be first to wake; what it was about to send stays unsent."""
    lease = Lease(pool, "me", ttl=0.3, beat=0.1)
    await lease.beat()
    lease.bind_lease()
    assert may_act(lease)
    await lease.beat()
    assert may_act(lease), "beating in time changes nothing"
    await eventually(lambda: not may_act(lease))
    await lease.beat()
    assert not may_act(lease), "somebody else may have it by now"

    async def another_saga() -> bool:
        lease.bind_lease()
        return may_act(lease)

    assert await asyncio.create_task(another_saga())
    assert not may_act(lease)
    lease.bind_lease()
    assert may_act(lease)


@pytest.mark.fault("r7")
async def test_who_was_away_gives_the_others_time_to_show_themselves(pool: Pool) -> None:
    lease = Lease(pool, "me", ttl=0.3, beat=0.1)
    assert not lease.steady
    beating = asyncio.create_task(lease.run())
    await eventually(lambda: may_act(lease))
    assert not lease.steady
    await eventually(lambda: lease.steady)
    beating.cancel()
    await lease.release()
    assert not may_act(lease)
    assert await pool.fetchval("SELECT count(*) FROM evosaga.workers") == 0


# -- one saga that can't be read


async def corrupt_saga(pool: Pool) -> uuid.UUID:
    """A saga with an event of a release that this one doesn't know, owned by nobody, and due."""
    saga = uuid.uuid4()
    await pool.execute(
        "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, "
        "command_hash, correlation_id, next_sequence, next_at) "
        "VALUES ($1, 'create-integration', 1, 'running', 'k', 'c', 'h', 'c', 1, now())",
        saga,
    )
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        "VALUES ($1, 0, 'saga.teleported', '{\"name\": \"secret\"}', 'c')",
        saga,
    )
    return saga


@pytest.mark.fault("b15")
async def test_a_saga_that_nobody_can_read_is_set_aside_and_the_others_are_recovered(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", seconds=0.3)
    async with running_worker(settings):
        left = await publish(redis, create())
        await eventually(lambda: pool.fetchval("SELECT count(*) FROM evosaga.sagas"))
    await corrupt_saga(pool)
    async with running_worker(settings) as worker:
        assert (await outcome(pool, left)).status == "completed"
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        assert not worker.failed.done(), worker.failed


@pytest.mark.fault("b15")
async def test_an_event_of_a_newer_release_does_not_stop_the_relay(
    pool: Pool, redis: Redis
) -> None:
    """While releases are mixed an old relay may lead: it tells what it knows, nothing private."""
    saga = await corrupt_saga(pool)
    relay = Relay(pool, redis, "me")
    await relay.pump()
    [(_, fields)] = await entries(redis, streams.EVENTS)
    assert f"{saga}:0".encode() in fields[b"data"]
    assert b"saga.teleported" in fields[b"data"]
    assert b"secret" not in fields[b"data"]
