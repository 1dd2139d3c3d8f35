"""Thousands of integrations in all three stores, written behind everybody's back.

``python -m tests.whatsapp.reconciliation.population 10000`` measures a round of each kind over so
many.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

import httpx
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import streams
from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.health import monitor
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor
from evosaga.orchestrator.whatsapp.reconciliation.incomplete_instances import SHARE
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import (
    EVERYTHING,
    OFTEN,
    Reconciler,
    find,
    run_once,
)
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.payload import own_webhook
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key

PHONE: Final = "5511900000000"


@dataclass(frozen=True)
class Made:
    """One integration of the population."""

    id: uuid.UUID
    organization_id: uuid.UUID
    clinic_id: uuid.UUID
    number: str

    @property
    def name(self) -> str:
        return f"wa-{self.id}"


def people(number: int) -> list[Made]:
    return [
        Made(uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), str(int(PHONE) + n)) for n in range(number)
    ]


async def settle(
    made: list[Made], pool: Pool, redis: Redis, evolution: SimulatedEvolution, keys: KeyRing
) -> None:
    """Connected integrations of ours: instance, row, key, and the saga that made them."""
    for one in made:
        token = keys.instance_token(one.id, keys.current)
        evolution.put(one.name, token=token, phone=one.number)
    columns = (
        [one.id for one in made],
        [one.organization_id for one in made],
        [one.name for one in made],
    )
    await pool.execute(
        """
        INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, organization_id,
            instance_name, command_id, command_hash, correlation_id, next_sequence,
            created_at, updated_at)
        SELECT id, 'create-integration', 1, 'completed', 'whatsapp/evolution/' || organization,
            organization, name, id::text, '', id::text, 1, now() - interval '1 day',
            now() - interval '1 day'
        FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS new (id, organization, name)
        """,
        *columns,
    )
    await pool.execute(
        """
        INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
        SELECT id, 0, 'saga.started', jsonb_build_object('instance_name', name,
            'facts', jsonb_build_object('key_id', $3::text)), id::text
        FROM unnest($1::uuid[], $2::text[]) AS new (id, name)
        """,
        columns[0],
        columns[2],
        keys.current,
    )
    await pool.execute(
        """
        INSERT INTO healthcare.integrations
            (id, organization_id, status, config, whatsapp_number)
        SELECT id, organization, 'connected', jsonb_build_object('instance_name', name,
            'clinic_id', clinic, 'name', 'Clínica', 'channel', 'WHATSAPP-BAILEYS'), number
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::text[])
            AS new (id, organization, name, clinic, number)
        """,
        *columns,
        [one.clinic_id for one in made],
        [one.number for one in made],
    )
    pipeline = redis.pipeline(transaction=False)
    for one in made:
        told = {
            "clinic_id": str(one.clinic_id),
            "organization_id": str(one.organization_id),
            "name": "Clínica",
            "whatsapp_number": one.number,
        }
        pipeline.set(routing_key.key(one.name), json.dumps(told), ex=3600)
    await pipeline.execute()


async def hook(made: list[Made], pool: Pool, evolution: SimulatedEvolution, keys: KeyRing) -> None:
    """Each gets the webhook that a create of ours would have given it."""
    for one in made:
        url = f"http://192.0.2.1:9/webhooks/evolution/{one.name}"
        wanted = own_webhook(url, keys, one.id, keys.current)
        told = {name: wanted[name] for name in ("url", "headers", "events")}
        evolution.set_webhook(one.name, enabled=True, **told)
    await pool.execute(
        "UPDATE healthcare.integrations SET config = config || jsonb_build_object('webhook_url', "
        "'http://192.0.2.1:9/webhooks/evolution/' || (config ->> 'instance_name'))"
    )


async def disturb(
    made: list[Made], pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> dict[str, int]:
    """Two percent go wrong, in four ways; how many of each kind."""
    share = max(1, len(made) // 200)
    gone, rowless, wrong, keys = (made[n * share : (n + 1) * share] for n in range(4))
    for one in gone:
        evolution.drop(one.name)
    for one in rowless:
        evolution.hang_up(one.name, 401)
    await pool.execute(
        "DELETE FROM healthcare.integrations WHERE id = ANY($1)", [one.id for one in rowless]
    )
    await pool.execute(
        "UPDATE healthcare.integrations SET status = 'pending' WHERE id = ANY($1)",
        [one.id for one in wrong],
    )
    for one in keys:
        await redis.set(routing_key.key(one.name), "garbage", ex=600)
    await redis.delete(*(routing_key.key(one.name) for one in rowless))
    return {"missing": share, "rowless": share, "wrong_status": share, "key_unreadable": share}


async def _measure(number: int) -> None:
    from evosaga.orchestrator.local.servers import local_servers

    secret = "a-secret-key-of-thirty-two-bytes-or-more"
    with local_servers() as servers:
        await migrations.migrate(servers.postgres.url)
        pool = await open_pool(servers.postgres.url)
        redis = streams.connect(servers.valkey.url)
        async with contextlib.AsyncExitStack() as stack:
            server = SimulatedEvolution(api_key="a-global-key", pace=0.05)
            evolution = await stack.enter_async_context(server)
            api = await stack.enter_async_context(EvolutionApi(evolution.url, "a-global-key"))
            http = await stack.enter_async_context(httpx.AsyncClient())
            keys = KeyRing([secret])
            services = Services({"default": api}, redis, http, keys, pool=pool)
            made = people(number)
            for at in range(0, number, 1000):
                await settle(made[at : at + 1000], pool, redis, evolution, keys)
            keeper = Reconciler(
                pool, services, CommandHandler(pool, EventLog(pool), services, discover()), (), 0.0
            )
            await _report("settled", len(made))
            await _timed("reconcile, nothing wrong", find(keeper, kinds=EVERYTHING))
            await _timed("orphans, nothing wrong", find(keeper, kinds=OFTEN))
            await hook(made, pool, evolution, keys)
            asked = len(evolution.journal.requests("webhook_find"))
            await _timed("the same with webhooks, by hand", find(keeper, kinds=EVERYTHING))
            await _timed("the same, by the schedule", find(keeper, kinds=EVERYTHING, share=SHARE))
            await _timed("orphans, nothing wrong", find(keeper, kinds=OFTEN, share=SHARE))
            asked = len(evolution.journal.requests("webhook_find")) - asked
            print(f"webhooks asked for: {asked}")
            await _timed("health, first round", monitor.run_once(HealthMonitor(pool, services)))
            await _timed("health, nothing wrong", monitor.run_once(HealthMonitor(pool, services)))
            print(await disturb(made, pool, redis, evolution))
            await _timed("reconcile, 2 % wrong", find(keeper, kinds=EVERYTHING))
            await _timed("reconcile, first look", run_once(keeper))
            done = await _timed("reconcile, asking for repairs", run_once(keeper))
            print(f"repairs asked for: {len(done.repairs)}")
            await _timed("health, 2 % wrong", monitor.run_once(HealthMonitor(pool, services)))
        await redis.aclose()
        await pool.close()


async def _timed(what: str, work: Any) -> Any:
    began = time.monotonic()
    answer = await work
    await _report(what, time.monotonic() - began)
    return answer


async def _report(what: str, value: float) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:<32}{value:>10.2f}   (this process so far: {most:.0f} MiB at most)", flush=True)


if __name__ == "__main__":
    asyncio.run(_measure(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
