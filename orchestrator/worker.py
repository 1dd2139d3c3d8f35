"""A worker: every part that runs in one process, around the sagas of its domains."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga import migrations
from evosaga.events import background, log_loss, streams
from evosaga.events.alerts import Condition
from evosaga.events.background import Broken as Broken
from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog
from evosaga.events.relay import Relay
from evosaga.events.retention import Retention
from evosaga.orchestrator.commands.consumer import CommandConsumer
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.commands.handover import announced
from evosaga.orchestrator.config.listener import bind
from evosaga.orchestrator.config.receivers import receivers_of
from evosaga.orchestrator.config.settings import Settings, SettingsError
from evosaga.orchestrator.domain import Domain, Domains, ServicesT, open_domains
from evosaga.orchestrator.engine.blocking import LoopWatchdog
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.limits import Limiter
from evosaga.orchestrator.engine.recovery import Recovery, tidy
from evosaga.orchestrator.engine.resources import Resource, ServicesBySaga
from evosaga.orchestrator.maintenance import redis_owner, tracing
from evosaga.orchestrator.maintenance.alerts.monitor import (
    AlertMonitor,
    Seen,
    domain_monitors,
    full_disks,
)
from evosaga.orchestrator.maintenance.rejected_sagas import RejectedSagaArchive
from evosaga.orchestrator.maintenance.scheduler import AnyJob, Scheduler
from evosaga.orchestrator.queries import conditions
from evosaga.sagas.registry import SagaRegistry

_logger = structlog.get_logger("evosaga.app")
_PATIENCE: Final = 25.0
"""Seconds that a stopping worker gives the attempts that are out."""


@dataclass(frozen=True)
class Worker(Generic[ServicesT]):
    """A running worker's parts, for those who look after it."""

    name: str
    engine: Engine
    reader: CommandConsumer
    relay: Relay
    log: EventLog
    resource: Resource[ServicesT]
    """The services of the first domain."""
    all_services: ServicesBySaga
    pool: Pool
    redis: Redis
    lease: Lease
    failed: asyncio.Future[None]
    """Fails when a part ends that never should."""

    @property
    def services(self) -> ServicesT:
        """What the first domain's steps are handed. Raises ``ResourceUnavailable``."""
        return self.resource.get()


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
async def running_worker(
    settings: Settings, domain: Domain[ServicesT], *others: Domain[Any]
) -> AsyncIterator[Worker[ServicesT]]:
    """A worker that reads commands, drives sagas, relays events and recovers what is due.

    On leaving it stops gracefully: attempts that are out are finished, nothing new is begun.
    Raises what an essential domain raises while it is opened.
    """
    domains = Domains.of(domain, *others)
    known, traced = domains.sagas, tracing.configured()
    name = worker_name()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(tracing.instrumented())
        pool, redis = await stack.enter_async_context(stores(settings))
        ttl = settings.lease_seconds
        lease = Lease(pool, name, ttl=ttl, beat=ttl / 5, knows=announced(known))
        resources, services = await stack.enter_async_context(
            open_domains(domains, settings, pool, redis, lease)
        )
        keep = Retention(settings.events_keep, settings.events_most_bytes)
        relay = Relay(pool, redis, name, domains.on_rewind, traced=traced, keep=keep)
        log = EventLog(pool, relay.nudge)
        engine, watchdog = _engine(settings, known, log, services, redis, lease)
        assert settings.redis_url is not None
        gate = CommandHandler(pool, log, services, known, engine)
        patience = settings.unknown_command_seconds
        reader = CommandConsumer(settings.redis_url, redis, gate, engine, patience)
        await lease.beat()
        database = await _own(pool, redis)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        of_domains = _Beside(settings, pool, redis, name, gate)
        parts = start_parts(
            failed,
            log=log.run(),
            heartbeat=lease.run(),
            recovery=Recovery(pool, log, engine, lease).run(),
            relay=relay.run(),
            blocking=watchdog.run(),
            watchdog=reader.watch(),
            tidy=tidy(pool, redis, domains.streams, keep=keep),
            owner=redis_owner.watch(redis, database),
            rejected=RejectedSagaArchive(
                pool, name, settings.rejected_keep, settings.rejected_most
            ).run(),
            **of_domains.parts(domains, resources),
            **alerting(settings, domains, services, pool, redis, name, watchdog.conditions),
        )
        first: Resource[ServicesT] = resources[0]
        own = (name, engine, reader, relay, log, first, services, pool, redis, lease, failed)
        worker = Worker(*own)
        try:
            await stack.enter_async_context(_metrics(settings, domains, worker))
            await reader.start()
            _logger.info("worker is up", worker=name)
            yield worker
        finally:
            await _stop(reader, engine, relay, lease, parts)
            failed.cancel()


def _engine(
    settings: Settings,
    known: SagaRegistry,
    log: EventLog,
    services: ServicesBySaga,
    redis: Redis,
    lease: Lease,
) -> tuple[Engine, LoopWatchdog]:
    limiter = Limiter(redis)
    share = settings.organization_share
    engine = Engine(
        known, log, services, lease, capacity=settings.capacity, share=share, limiter=limiter
    )
    engine.watchdog = LoopWatchdog(engine.at_work)
    return engine, engine.watchdog


async def _own(pool: Pool, redis: Redis) -> str:
    """Claim Redis, and compare the log with it before any upkeep; the database's identity."""
    database = await redis_owner.identity(pool)
    await redis_owner.claim(redis, database)
    await log_loss.notice(pool, redis)
    return database


@dataclass(frozen=True, slots=True)
class _Beside:
    """What domains let run beside the engine: parts of every worker, and scheduled jobs.

    Those of an essential domain are parts of the worker, so it breaks with them; those of another
    one run whenever its services are open, and begin anew after a failure.
    """

    settings: Settings
    pool: Pool
    redis: Redis
    worker: str
    gate: CommandHandler

    def parts(
        self, domains: Domains, resources: list[Resource[Any]]
    ) -> Mapping[str, Coroutine[Any, Any, None]]:
        found: dict[str, Coroutine[Any, Any, None]] = {}
        jobs: list[AnyJob] = []
        for one, resource in zip(domains.each, resources, strict=True):
            if one.essential:
                services = resource.get()
                found |= one.parts(self.pool, self.redis, services, self.worker)
                jobs += one.jobs(self.settings, self.pool, services, self.gate)
                resource.begin(_nothing)
            else:
                resource.begin(partial(self._run, one))
        return {"chores": Scheduler(self.pool, self.worker, jobs).run(), **found}

    async def _run(self, one: Domain[Any], services: Any) -> None:
        jobs = one.jobs(self.settings, self.pool, services, self.gate)
        async with asyncio.TaskGroup() as group:
            group.create_task(Scheduler(self.pool, self.worker, jobs).run())
            for name, part in one.parts(self.pool, self.redis, services, self.worker).items():
                group.create_task(part, name=name)


async def _nothing(_services: object) -> None:
    pass


@contextlib.asynccontextmanager
async def _metrics(
    settings: Settings, domains: Domains, worker: Worker[ServicesT]
) -> AsyncIterator[None]:
    """Serve metrics where a port is set for them. Raises ``SettingsError`` when it can't be had."""
    if settings.metrics_port is None:
        yield
        return
    # Only here, since a worker without it should not pay for the libraries.
    from evosaga.orchestrator.maintenance import metrics_server
    from evosaga.orchestrator.queries import metrics

    async def render() -> bytes:
        stored = [*await metrics.of_postgres(worker.pool), *await metrics.of_redis(worker.redis)]
        own = metrics.of_worker(worker.engine, worker.lease, worker.reader.healthy)
        served = domains.of_open(worker.all_services, lambda one: one.metrics)
        return metrics.text([*stored, *metrics.of_pool(worker.pool), *own, *served])

    try:
        listener = bind(settings.host, settings.metrics_port)
    except OSError as error:
        said = f"can't listen on {settings.host}, port {settings.metrics_port}"
        raise SettingsError(f"EVOSAGA_METRICS_PORT: {said}: {error.strerror or error}") from None
    async with metrics_server.serving(listener, render, metrics.CONTENT_TYPE):
        yield


def alerting(
    settings: Settings,
    domains: Domains,
    services: ServicesBySaga,
    pool: Pool,
    redis: Redis,
    name: str,
    of_engine: Callable[[], Sequence[Condition]] = lambda: (),
) -> dict[str, Coroutine[Any, Any, None]]:
    """What finds and tells alerts, and sends traces, in a process without a worker as well:
    alerts must outlive all of them.
    """

    def own() -> list[Condition]:
        of_domains = domains.of_open(services, lambda one: one.own_conditions)
        return [*of_domains, *of_engine(), *full_disks()]

    monitor = AlertMonitor(pool, name, partial(_look, pool, redis), own)
    parts = {"alerts": monitor.run()}
    parts |= {one.task: one.run() for one in domain_monitors(domains.conditions, pool, name)}
    if receivers_of(settings):  # else nothing pays for the library that posts
        from evosaga.orchestrator.maintenance.alerts.dispatcher import Dispatcher, Posting

        parts["deliveries"] = Dispatcher(pool, redis, name, Posting.of(settings)).run()
    if tracing.configured():
        from evosaga.orchestrator.maintenance.tracing.follower import TraceFollower

        parts["traces"] = TraceFollower(pool, redis, name).run()
    return parts


async def _look(pool: Pool, redis: Redis) -> Seen:
    """At everything that is not a domain's."""
    with contextlib.suppress(RedisError, OSError, TimeoutError):  # which is said below
        await log_loss.notice(pool, redis)
    found = await conditions.of_postgres(pool)
    streamed, unseen = await conditions.of_redis(redis)
    looked = [code for code in conditions.CODES if code not in unseen]
    return Seen([*found, *streamed], looked)


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
    await background.end(parts)
    for leave in (relay.resign(), lease.release()):
        with contextlib.suppress(Exception):
            await asyncio.wait_for(leave, 3)
    _logger.info("worker is down", worker=lease.worker)


async def _relay_the_rest(relay: Relay) -> None:
    while await relay.pump():
        pass


async def serve_until(stop: asyncio.Event, settings: Settings, *domains: Domain[Any]) -> None:
    """Run a worker until ``stop`` is set. Raises ``Broken`` when one of its parts dies."""
    async with running_worker(settings, *domains) as worker:
        stopping = asyncio.create_task(stop.wait())
        worker.failed.add_done_callback(lambda _: stopping.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        if worker.failed.done():
            worker.failed.result()
