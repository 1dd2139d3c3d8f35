"""Nothing breaks, and nothing moves: a blocked loop, a Redis that is stopped, a lost reply."""

import os
import time
from dataclasses import replace
from signal import SIGCONT, SIGSTOP

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.sagas.outcome import Outcome
from evosaga.sagas.registry import discover, registry_of
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from evosaga.sagas.whatsapp.services import Context
from evosaga.sagas.whatsapp.steps import evolution_instance as steps
from tests.harness.chaos.proxy import Cut, Proxy, through, upstream_of
from tests.support.driving import contradictions, count, create, delete, outcome, publish
from tests.support.waiting import eventually

BURNED = "SELECT count(*) FROM evosaga.saga_events WHERE data ->> 'outcome' = 'unknown'"


@pytest.mark.fault("i4")
async def test_a_worker_whose_event_loop_was_blocked_sends_nothing_on_its_old_right(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """It has been taken for dead meanwhile, for all it knows."""
    quick = settings.model_copy(update={"lease_seconds": 0.6})
    sent_before: list[int] = []

    async def block(ctx: Context) -> Outcome:
        if not sent_before:
            sent_before.append(len(evolution.journal.entries))
            time.sleep(0.8)  # noqa: ASYNC251  # that is the fault
        return await steps.create_instance(ctx)

    first, *rest = CREATE_INTEGRATION.steps
    blocking = replace(CREATE_INTEGRATION, steps=(replace(first, do=block), *rest))
    others = [saga for saga in discover().versions.values() if saga.name != blocking.name]
    async with running_worker(quick, registry_of([blocking, *others])):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    assert await count(pool, BURNED) == 1, "the attempt was given up, in doubt"
    assert [e.operation for e in evolution.journal.entries][:1] == ["connectionState"], (
        "whoever took it up looked before anything was sent"
    )
    assert len(evolution.journal.requests("create")) == 1
    assert await contradictions(pool) == []


@pytest.mark.fault("h7")
async def test_a_redis_that_is_stopped_for_a_while_costs_no_lease_and_no_attempt(
    settings: Settings,
    pool: Pool,
    own_redis: Redis,
    own_valkey: LocalServer,
    evolution: SimulatedEvolution,
) -> None:
    apart = settings.model_copy(update={"redis_url": own_valkey.url, "lease_seconds": 1.0})
    async with running_worker(apart):
        evolution.arm("slow", operation="create", times=None, seconds=0.3)
        ids = [await publish(own_redis, create()) for _ in range(5)]
        await eventually(lambda: len(evolution.journal.entries) + len(evolution.armed) >= 1)

        async def begun() -> bool:
            return await count(pool, "SELECT count(*) FROM evosaga.sagas") == 5

        await eventually(begun)
        os.kill(own_valkey.pid, SIGSTOP)
        try:
            await eventually(lambda: len(evolution.rows()) == 5, message="Evolution to go on")
        finally:
            os.kill(own_valkey.pid, SIGCONT)
        for id_ in ids:
            assert (await outcome(pool, id_, 20)).status == "completed"
    lost = "SELECT count(*) FROM evosaga.saga_events WHERE data ->> 'code' = 'worker_lost'"
    assert await count(pool, lost) == 0
    assert await count(pool, BURNED) == 0
    assert await contradictions(pool) == []


@pytest.mark.fault("f2")
async def test_a_reply_of_redis_that_is_lost_makes_the_step_do_the_same_once_more(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with Proxy(upstream_of(str(settings.redis_url))) as proxy:
        led = settings.model_copy(update={"redis_url": through(str(settings.redis_url), proxy)})
        async with running_worker(led):
            await proxy.arm(Cut(match=b"whatsapp:instance:"))
            made = await outcome(pool, await publish(redis, create()))
            assert made.status == "completed"
            assert await redis.exists(f"whatsapp:instance:{made.instance_name}")
            await proxy.arm(Cut(match=b"whatsapp:instance:"))
            gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        assert proxy.stats["cut"] == 2
    assert gone.status == "completed"
    assert not await redis.exists(f"whatsapp:instance:{made.instance_name}")
    assert not evolution.rows()
    assert await contradictions(pool) == []
