"""The routing key: filled, dropped, and never filled again for what was removed."""

import asyncio
import json
import uuid
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from evosaga.orchestrator.local.handle import LocalServer
from evosaga.sagas.definition import Effect
from evosaga.sagas.outcome import Done, Held, Rejected
from evosaga.sagas.whatsapp.create_integration import CreateIntegration
from evosaga.sagas.whatsapp.services import Context, Services
from evosaga.sagas.whatsapp.steps import notify_workers, routing_key


@pytest.fixture
def ctx(services: Services) -> Context:
    saga_id = uuid.uuid4()
    data = CreateIntegration(
        organization_id=uuid.uuid4(), clinic_id=uuid.uuid4(), name="Clínica Sol"
    )
    facts = {
        "instance_name": "ours",
        "created_by": str(saga_id),
        "organization_id": str(data.organization_id),
        "clinic_id": str(data.clinic_id),
    }
    return Context(saga_id=saga_id, input=data, services=services, facts=facts)


async def test_filling_twice_is_filling_once(ctx: Context, redis: Redis) -> None:
    for _ in range(2):
        assert await routing_key.fill(ctx) == Done()
    assert json.loads(await redis.get("whatsapp:instance:ours") or b"") == {
        "clinic_id": str(ctx.input.clinic_id),
        "organization_id": str(ctx.input.organization_id),
        "name": "Clínica Sol",
        "whatsapp_number": None,
    }
    assert 0 < await redis.ttl("whatsapp:instance:ours") <= 3600


@pytest.mark.fault("f3")
async def test_a_zombie_can_not_fill_what_was_removed_meanwhile(ctx: Context, redis: Redis) -> None:
    await routing_key.fill(ctx)
    await redis.set("evosaga:qr:ours", "{}")
    for _ in range(2):
        assert await routing_key.invalidate(ctx) == Done()
    outcome = await routing_key.fill(ctx)
    assert isinstance(outcome, Rejected)
    assert await redis.exists("whatsapp:instance:ours", "evosaga:qr:ours") == 0
    assert await redis.ttl("evosaga:removed:ours") > 3600


async def test_on_a_single_redis_a_removal_is_one_script(ctx: Context, own_redis: Redis) -> None:
    given = replace(ctx, services=replace(ctx.services, redis=own_redis))
    await own_redis.set("evosaga:qr-limit:ours", "1")
    await own_redis.config_resetstat()
    assert await routing_key.invalidate(given) == Done()
    calls = await own_redis.info("commandstats")
    assert await own_redis.exists("evosaga:qr-limit:ours") == 0
    asked = {name: told["calls"] for name, told in calls.items() if name != "cmdstat_hello"}
    assert (asked.get("cmdstat_eval"), asked["cmdstat_del"]) == (1, 1), asked


async def test_another_integration_may_have_the_name_of_one_that_was_removed(
    ctx: Context, redis: Redis
) -> None:
    await routing_key.invalidate(ctx)
    assert await routing_key.fill(replace(ctx, saga_id=uuid.uuid4())) == Done()
    assert isinstance(await routing_key.fill(ctx), Rejected)
    assert await redis.exists("whatsapp:instance:ours") == 1


@pytest.mark.fault("f1")
@pytest.mark.parametrize(
    "step",
    [
        routing_key.fill,
        routing_key.invalidate,
        notify_workers.announce_added,
        notify_workers.announce_removed,
    ],
)
async def test_a_redis_that_is_away_is_waited_for(
    ctx: Context, own_redis: Redis, own_valkey: LocalServer, step: Effect
) -> None:
    away = replace(ctx, services=replace(ctx.services, redis=own_redis))
    await own_redis.ping()
    await asyncio.to_thread(own_valkey.stop)
    outcome = await step(away)
    assert isinstance(outcome, Held), outcome
    assert (outcome.code, outcome.in_doubt) == ("redis_unavailable", True)
    await asyncio.to_thread(own_valkey.start_again)
    assert await step(away) == Done()


@pytest.mark.fault("h6")
@pytest.mark.parametrize("step", [routing_key.fill, routing_key.invalidate])
async def test_a_read_only_redis_is_waited_for(
    ctx: Context, own_redis: Redis, step: Effect
) -> None:
    given = replace(ctx, services=replace(ctx.services, redis=own_redis))
    await own_redis.replicaof("127.0.0.1", 1)
    outcome = await step(given)
    assert isinstance(outcome, Held), outcome
    await own_redis.replicaof("NO", "ONE")
    assert await step(given) == Done()


@pytest.mark.fault("h6")
async def test_a_full_redis_is_waited_for_by_what_fills_it_and_not_by_what_frees_it(
    ctx: Context, own_redis: Redis
) -> None:
    given = replace(ctx, services=replace(ctx.services, redis=own_redis))
    await own_redis.config_set("maxmemory", 1)
    outcome = await routing_key.fill(given)
    assert isinstance(outcome, Held), outcome
    assert await routing_key.invalidate(given) == Done()
    await own_redis.config_set("maxmemory", 0)
    outcome = await routing_key.fill(given)
    assert isinstance(outcome, Rejected), "the mark was left all the same"
