"""Putting it together: the one place that knows every part."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import httpx
import structlog
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import cancellation, streams
from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog
from evosaga.events.relay import Relay
from evosaga.orchestrator.commands.consumer import CommandConsumer
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.commands.handover import announced
from evosaga.orchestrator.config.settings import Settings, SettingsError, servers_of, split_secrets
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.recovery import Recovery, tidy
from evosaga.orchestrator.maintenance import redis_owner
from evosaga.orchestrator.maintenance.rejected_sagas import RejectedSagaArchive
from evosaga.orchestrator.maintenance.scheduler import Scheduler
from evosaga.orchestrator.whatsapp.jobs import jobs_of
from evosaga.orchestrator.whatsapp.secret_keys import CURE, unknown_keys
from evosaga.orchestrator.whatsapp.webhooks.processor import InboxProcessor
from evosaga.sagas import registry
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.tls import trusted
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services

_logger = structlog.get_logger("evosaga.app")
_PATIENCE: Final = 25.0
"""Seconds that a stopping worker gives the attempts that are out."""


class Broken(Exception):
    """A part of the worker ended that never should. Ours to mend; the supervisor restarts us."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A running worker's parts, for those who look after it."""

    name: str
    engine: Engine
    reader: CommandConsumer
    relay: Relay
    log: EventLog
    services: Services
    pool: Pool
    redis: Redis
    failed: asyncio.Future[None]
    """Fails when a part ends that never should."""


def worker_name() -> str:
    """Unique for ever: a restarted worker must never be taken for the one before."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.asynccontextmanager
async def stores(settings: Settings) -> AsyncIterator[tuple[Pool, Redis]]:
    """Postgres, with its schema checked, and Redis."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    pool = await open_pool(settings.database_url)
    redis = streams.connect(settings.redis_url, settings.redis_prefix)
    try:
        async with pool.acquire() as connection:
            await migrations.require_current(connection)
        yield pool, redis
    finally:
        await redis.aclose()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.close(), 5)


@contextlib.asynccontextmanager
async def services(
    settings: Settings, redis: Redis, lease: Lease | None = None, pool: "Pool | None" = None
) -> AsyncIterator[Services]:
    """What steps may touch. Raises ``SettingsError`` for what is missing.

    Without a ``lease`` nothing keeps a process from acting that was paused for long: for looks
    and for what may be done twice, not for sagas.
    """
    for name in ("evolution_url", "evolution_api_key", "secret_key"):
        if getattr(settings, name) is None:
            raise SettingsError(f"EVOSAGA_{name.upper()} is not set; a worker needs it")
    assert settings.secret_key
    async with contextlib.AsyncExitStack() as stack:
        plain = httpx.AsyncClient(trust_env=False, verify=trusted())
        http = await stack.enter_async_context(plain)
        servers = evolution_servers(settings, lease)
        for server in servers.values():
            await stack.enter_async_context(server)
        yield Services(
            servers=servers,
            redis=redis,
            http=http,
            keys=KeyRing(split_secrets(settings.secret_key)),
            public_url=settings.public_url,
            webhook_hosts=settings.webhook_hosts,
            quiet_seconds=settings.quiet_seconds,
            watch_after=settings.watch_after,
            create_deadline=settings.create_deadline or None,
            pool=pool,
        )


def evolution_servers(settings: Settings, lease: Lease | None = None) -> dict[str, EvolutionApi]:
    """A client of each server, with a breaker and a bulkhead of its own; none is open yet.

    A server that hangs may hold up half of the sagas that this worker has room for, or its share
    where there are several. What waits for a place in a call takes up room as well; of one server
    alone nobody else would want it.
    """
    known = servers_of(settings)
    share = max(1, settings.capacity // max(2, len(known)))
    places = min(settings.evolution_concurrency, share if len(known) == 1 else max(1, share // 2))
    return {
        name: EvolutionApi(
            server.url,
            server.api_key.get_secret_value(),
            timeout=settings.evolution_timeout,
            concurrency=places,
            queue=None if len(known) == 1 else max(1, share - places),
            before_send=lease.check if lease is not None else lambda: None,
        )
        for name, server in known.items()
    }


@contextlib.asynccontextmanager
async def running_worker(
    settings: Settings, sagas: registry.SagaRegistry | None = None
) -> AsyncIterator[Worker]:
    """A worker that reads commands, drives sagas, relays events and recovers what is due.

    On leaving it stops gracefully: attempts that are out are finished, nothing new is begun.
    """
    known = sagas or registry.discover()
    name = worker_name()
    async with contextlib.AsyncExitStack() as stack:
        pool, redis = await stack.enter_async_context(stores(settings))
        lease = Lease(
            pool,
            name,
            ttl=settings.lease_seconds,
            beat=settings.lease_seconds / 5,
            knows=announced(known),
        )
        outside = await stack.enter_async_context(services(settings, redis, lease, pool))
        for said in await unknown_keys(pool, outside.keys):
            _logger.error("secret key unknown", message=said, cure=CURE)
        relay = Relay(pool, redis, name)
        log = EventLog(pool, relay.nudge)
        engine = Engine(known, log, outside, lease, capacity=settings.capacity)
        assert settings.redis_url is not None
        patience = settings.unknown_command_seconds
        reader = CommandConsumer(
            settings.redis_url, redis, pool, log, engine, outside, name, patience
        )
        gate = CommandHandler(pool, log, outside, known, engine)
        await lease.beat()
        database = await redis_owner.identity(pool)
        await redis_owner.claim(redis, database)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        parts = start_parts(
            failed,
            log=log.run(),
            heartbeat=lease.run(),
            recovery=Recovery(pool, log, engine, lease).run(),
            relay=relay.run(),
            watchdog=reader.watch(),
            tidy=tidy(redis),
            owner=redis_owner.watch(redis, database),
            webhooks=InboxProcessor(pool, redis, outside, name).run(),
            rejected=RejectedSagaArchive(
                pool, name, settings.rejected_keep, settings.rejected_most
            ).run(),
            chores=Scheduler(pool, name, jobs_of(settings, pool, outside, gate)).run(),
        )
        try:
            await reader.start()
            _logger.info("worker is up", worker=name)
            yield Worker(name, engine, reader, relay, log, outside, pool, redis, failed)
        finally:
            await _stop(reader, engine, relay, lease, parts)
            failed.cancel()


def start_parts(
    failed: asyncio.Future[None], **parts: Coroutine[Any, Any, None]
) -> list[asyncio.Task[None]]:
    """Run the parts; one that ends by itself is a failure of the whole."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not failed.done():
            reason = task.exception() or "it returned"
            failed.set_exception(Broken(f"{task.get_name()} ended: {reason!r}"))

    tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    for task in tasks:
        task.add_done_callback(ended)
    return tasks


async def _stop(
    reader: CommandConsumer,
    engine: Engine,
    relay: Relay,
    lease: Lease,
    parts: list[asyncio.Task[None]],
) -> None:
    by_name = {task.get_name(): task for task in parts}
    by_name["watchdog"].cancel()
    by_name["chores"].cancel()
    by_name["recovery"].cancel()
    with contextlib.suppress(Exception):
        await asyncio.wait_for(reader.stop(), 15)
    await engine.stop(_PATIENCE)
    by_name["relay"].cancel()
    with contextlib.suppress(Exception):
        await asyncio.wait_for(_relay_the_rest(relay), 3)
    await cancellation.end(parts)
    for leave in (relay.resign(), lease.release()):
        with contextlib.suppress(Exception):
            await asyncio.wait_for(leave, 3)
    _logger.info("worker is down", worker=lease.worker)


async def _relay_the_rest(relay: Relay) -> None:
    while await relay.pump():
        pass


async def serve_until(stop: asyncio.Event, settings: Settings) -> None:
    """Run a worker until ``stop`` is set. Raises ``Broken`` when one of its parts dies."""
    async with running_worker(settings) as worker:
        stopping = asyncio.create_task(stop.wait())
        worker.failed.add_done_callback(lambda _: stopping.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        if worker.failed.done():
            worker.failed.result()
