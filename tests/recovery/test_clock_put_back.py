"""Postgres's clock is put back, as by a failover to a standby: nothing waits for it to catch up.

Whatever was written before stands an hour ahead of the clock then, which is what these tests make
of it. Nobody may wait longer than one period of whatever wrote it.
"""

import uuid
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.leader_election import Candidacy
from evosaga.events.relay import Relay
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.maintenance.scheduler import Job, JobResult, Scheduler, StillLeader
from evosaga.orchestrator.queries.sagas import find_saga, history, living_workers
from evosaga.orchestrator.queries.why import living
from evosaga.orchestrator.whatsapp.reconciliation.confirmations import (
    ObservedDrift,
    Unobserved,
    note,
)
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
from evosaga.orchestrator.whatsapp.webhooks.processor import _DUE
from evosaga.orchestrator.whatsapp.webhooks.throttle import SELDOMEST
from evosaga.sagas.registry import discover
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually

_PUT_BACK = "; ".join(
    (
        "UPDATE evosaga.workers SET lease_until = lease_until + interval '1 hour'",
        "UPDATE evosaga.leaders SET lease_until = lease_until + interval '1 hour'",
        "UPDATE evosaga.relay SET lease_until = lease_until + interval '1 hour'",
        "UPDATE evosaga.chores SET lease_until = lease_until + interval '1 hour', "
        "next_at = next_at + interval '1 hour'",
        "UPDATE evosaga.sagas SET next_at = next_at + interval '1 hour', "
        "scheduled_at = scheduled_at + interval '1 hour', "
        "updated_at = updated_at + interval '1 hour', created_at = created_at + interval '1 hour'",
        "ALTER TABLE evosaga.saga_events DISABLE TRIGGER USER",
        "UPDATE evosaga.saga_events SET recorded_at = recorded_at + interval '1 hour'",
        "ALTER TABLE evosaga.saga_events ENABLE TRIGGER USER",
    )
)


async def put_back(pool: Pool) -> None:
    """As if the clock had been put back by an hour: all that is written is from later."""
    await pool.execute(_PUT_BACK)


async def test_a_dead_worker_is_dead_and_its_sagas_go_on(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    dead = Lease(pool, "dead", ttl=settings.lease_seconds)
    await dead.beat()
    async with running_worker(settings):
        done = await outcome(pool, await publish(redis, create()), 60)
    # Its worker died in the middle of the last step.
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL evosaga.archiving = 'on'")
        await connection.execute("DELETE FROM evosaga.saga_events WHERE sequence >= 10")
        last = await connection.fetchval("SELECT max(sequence) FROM evosaga.saga_events")
        await connection.execute(
            "UPDATE evosaga.sagas SET status = 'running', owner = 'dead', next_sequence = $1, "
            "next_at = now() + interval '50 seconds'",
            last + 1,
        )
    await put_back(pool)
    assert await living_workers(pool) == 0
    assert (await living(pool)).silent == {"dead"}
    async with running_worker(settings):
        assert await living_workers(pool) == 1
        assert (await outcome(pool, str(done.saga_id), 60)).status == "completed"


async def test_what_was_due_in_a_while_is_due_now_and_not_in_an_hour(
    settings: Settings, pool: Pool, redis: Redis, evolution: object
) -> None:
    away = settings.model_copy(update={"evolution_url": "http://127.0.0.1:9"})
    async with running_worker(away):
        id_ = await publish(redis, create())

        async def waits() -> bool:
            view = await find_saga(pool, id_)
            return view is not None and view.owner is None and (view.holds or 0) > 1

        await eventually(waits, 60)
    await put_back(pool)
    async with running_worker(settings):
        assert (await outcome(pool, id_, 60)).status == "completed"


async def test_ages_are_not_counted_from_a_moment_that_is_still_to_come(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async with running_worker(settings):
        done = await outcome(pool, await publish(redis, create()), 60)
    await put_back(pool)
    now = await pool.fetchval("SELECT now()")
    live = SagaInstance.rehydrated(discover(), await history(pool, done.saga_id), now)
    newest = SagaInstance.rehydrated(discover(), (await history(pool, done.saga_id))[:1], now)
    assert live.started_at == pytest.approx(live.last_at)
    assert live.started_at <= newest.started_at + 60, "no later than now"


async def test_whoever_led_before_leads_no_longer_than_its_lease(pool: Pool, redis: Redis) -> None:
    before, after = Candidacy(pool, "task", "dead"), Candidacy(pool, "task", "alive")
    assert await before.held()
    relay, heir = Relay(pool, redis, "dead"), Relay(pool, redis, "alive")
    await relay.pump()
    await put_back(pool)
    assert await after.held()
    await heir.pump()
    leader = "SELECT leader FROM evosaga.relay WHERE stream = $1"
    assert await pool.fetchval(leader, streams.EVENTS) == "alive"
    again = Candidacy(pool, "task", "another")
    assert not await again.held(), "a lease that is in time is believed"


async def test_a_chore_is_due_again_and_its_dead_leader_is_not_waited_for(pool: Pool) -> None:
    done: list[str] = []

    async def work(_: StillLeader) -> JobResult:
        done.append("it")
        return JobResult()

    chore = Job("sweep", 30.0, work)
    worker = Scheduler(pool, "alive", [chore])
    await pool.execute(
        "INSERT INTO evosaga.chores (name, leader, lease_until, next_at) VALUES "
        "('sweep', 'dead', now() + interval '30 s', now() + interval '20 s')"
    )
    assert not await worker.do(chore)
    await put_back(pool)
    assert await worker.do(chore)
    assert not await worker.do(chore), "what is due in time is believed"
    assert done == ["it"]


async def test_the_lease_of_an_older_release_is_believed_as_it_stands(pool: Pool) -> None:
    ahead = "INSERT INTO evosaga.workers (worker_id, lease_until) VALUES ($1, now() + $2)"
    await pool.execute(ahead, str(uuid.uuid4()), timedelta(seconds=50))
    assert await living_workers(pool) == 1
    await put_back(pool)
    assert await living_workers(pool) == 1


async def test_a_drift_does_not_become_younger_than_it_is(pool: Pool) -> None:
    drift = Drift("orphan", "wa-1", None, "a cause", "a repair", "auto")
    ahead = (
        "UPDATE evosaga.sightings SET first_seen = now() + interval '1 hour', "
        "repaired_at = now() + interval '1 hour'"
    )
    seen: list[ObservedDrift] = []
    for grace in (3600.0, 0.0, 0.0):
        seen = await note(pool, [drift], kinds=["orphan"], blind=Unobserved(), grace=grace)
        if grace:
            await pool.execute(ahead)
    assert seen[0].ripe


async def test_a_webhook_is_taken_that_was_to_be_looked_at_again_in_a_minute(pool: Pool) -> None:
    await pool.execute(
        "INSERT INTO evosaga.webhooks (digest, instance_name, event, told_at, due_at) VALUES "
        "('a', 'wa-1', 'e', now(), now() + interval '50 s'), "
        "('b', 'wa-2', 'e', now(), now() + interval '1 hour')"
    )
    due = await pool.fetch(_DUE, 10, SELDOMEST + 1)
    assert [row["instance_name"] for row in due] == ["wa-2"]
