"""The HTTP server in the process's event loop: with a worker (`serve`, `dev`) or alone (`api`)."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
import structlog
import uvicorn
from redis.asyncio import Redis

from evosaga.events import background
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.replica import Replica
from evosaga.orchestrator import app, worker
from evosaga.orchestrator.api.application import create_app
from evosaga.orchestrator.api.connection_limits import connections_of, rate_limited_log
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.listener import bind as bind
from evosaga.orchestrator.config.settings import Settings, split_secrets
from evosaga.orchestrator.domain import Domains, open_domains
from evosaga.orchestrator.engine.resources import Resource
from evosaga.orchestrator.maintenance import redis_owner, tracing
from evosaga.sagas import registry
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services

_logger = structlog.get_logger("evosaga.api")
_GRACE: Final = 10
"""Seconds that a stopping server waits for answers under way."""
_BACKLOG: Final = 512
"""Connections that the kernel queues before they are accepted."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def address(listener: socket.socket) -> str:
    """The URL for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # what was asked for
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def listening(
    parts: AppContext, listener: socket.socket
) -> AsyncIterator[asyncio.Task[None]]:
    """Answer requests while inside; gives the server's task, which ends by itself only on failure.

    On leaving, answers under way are finished, streams end, and requests that wait for a saga are
    answered with its address.
    """
    application = create_app(parts)
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http=connections_of(parts.settings.http_connections),
        backlog=_BACKLOG,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config)
    with rate_limited_log():
        serving = asyncio.create_task(server.serve([listener]), name="http")
        try:
            while not server.started and not serving.done():  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.01)
            _logger.info("http is up", address=address(listener))
            yield serving
        finally:
            application.state.watch.stop()
            server.should_exit = True
            with contextlib.suppress(Exception):
                await serving
            listener.close()


@contextlib.asynccontextmanager
async def parts_alone(settings: Settings) -> AsyncIterator[AppContext]:
    """All parts except a worker: commands accepted here are carried out by workers elsewhere."""
    domains = app.domains_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(tracing.instrumented())
        pool, redis = await stack.enter_async_context(worker.stores(settings))
        resources, services = await stack.enter_async_context(
            open_domains(domains, settings, pool, redis, None)
        )
        log = EventLog(pool)
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        owner = redis_owner.watch(redis, await redis_owner.identity(pool))
        name = worker.worker_name()
        alerting = worker.alerting(settings, domains, services, pool, redis, name)
        tasks = worker.start_parts(failed, log=log.run(), owner=owner, **alerting)
        try:
            gate = CommandHandler(pool, log, services, domains.sagas)
            whatsapp = _whatsapp(settings, domains, resources[0], redis)
            yield AppContext(
                *(settings, pool, redis, log, whatsapp, domains.sagas, gate),
                failed=failed,
                domains=domains,
                replica=await stack.enter_async_context(_replica(settings, pool)),
            )
        finally:
            await background.end(tasks)
            failed.cancel()


@contextlib.asynccontextmanager
async def parts_with_worker(
    settings: Settings, sagas: registry.SagaRegistry | None = None
) -> AsyncIterator[AppContext]:
    """All parts, with a worker; ``sagas``: others than this release's, for WhatsApp alone."""
    domains = app.domains_of(settings) if sagas is None else None
    async with (
        contextlib.AsyncExitStack() as stack,
        app.running_worker(settings, sagas) as running,
    ):
        pool, engine = running.pool, running.engine
        gate = CommandHandler(pool, running.log, running.all_services, engine.registry, engine)
        replica = await stack.enter_async_context(_replica(settings, pool))
        yield AppContext(
            settings,
            pool,
            running.redis,
            running.log,
            _whatsapp(settings, domains, running.resource, running.redis),
            engine.registry,
            gate,
            engine,
            running.reader,
            running.failed,
            running.lease,
            domains,
            replica,
        )


@contextlib.asynccontextmanager
async def _replica(settings: Settings, pool: Pool) -> AsyncIterator[Replica | None]:
    """The standby that lists are read from. One that is away holds up no start."""
    if settings.database_replica_url is None:
        yield None
        return
    replica = Replica(pool, settings.database_replica_url, settings.database_replica_lag)
    try:
        yield replica
    finally:
        await replica.close()


def _whatsapp(
    settings: Settings, domains: Domains | None, first: Resource[Any], redis: Redis
) -> Services:
    """WhatsApp's services, which come first; without WhatsApp some that reach nothing."""
    if domains is None or domains.each[0].package == app.OURS:
        found: Services = first.get()
        return found
    keys = KeyRing(split_secrets(settings.secret_key)) if settings.secret_key else KeyRing([])
    return Services(servers={}, redis=redis, http=httpx.AsyncClient(trust_env=False), keys=keys)


async def serve_until(
    stop: asyncio.Event, settings: Settings, listener: socket.socket, *, worker: bool = True
) -> None:
    """Serve until ``stop`` is set. Raises ``app.Broken`` when a part ends unexpectedly."""
    running = parts_with_worker if worker else parts_alone
    async with running(settings) as parts, listening(parts, listener) as serving:
        assert parts.failed is not None
        waiting = asyncio.create_task(stop.wait())
        serving.add_done_callback(lambda _: waiting.cancel())
        parts.failed.add_done_callback(lambda _: waiting.cancel())
        await asyncio.wait([waiting])
        if parts.failed.done():
            parts.failed.result()
        if serving.done():
            raise app.Broken(f"the HTTP server ended: {serving.exception()!r}")
