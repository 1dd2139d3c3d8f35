"""Opening what WhatsApp's steps may touch, from the settings."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import httpx
import structlog
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings, SettingsError, servers_of, split_secrets
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.maintenance import tracing
from evosaga.orchestrator.whatsapp.secret_keys import CURE, unknown_keys
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.tls import trusted
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services

_logger = structlog.get_logger("evosaga.app")


@contextlib.asynccontextmanager
async def open_services(
    settings: Settings, pool: Pool, redis: Redis, lease: Lease | None = None
) -> AsyncIterator[Services]:
    """What steps may touch. Raises ``SettingsError`` for what is missing.

    Without a ``lease`` nothing keeps a process from acting that was paused for long: for looks
    and for what may be done twice, not for sagas.
    """
    for name in ("evolution_url", "evolution_api_key", "secret_key"):
        if getattr(settings, name) is None:
            raise SettingsError(f"EVOSAGA_{name.upper()} is not set; a worker needs it")
    assert settings.secret_key
    keys = KeyRing(split_secrets(settings.secret_key))
    if lease is not None:
        for said in await unknown_keys(pool, keys):
            _logger.error("secret key unknown", message=said, cure=CURE)
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
            keys=keys,
            public_url=settings.public_url,
            webhook_hosts=settings.webhook_hosts,
            quiet_seconds=settings.quiet_seconds,
            watch_after=settings.watch_after,
            create_deadline=settings.create_deadline or None,
            maintenance_rate=settings.evolution_maintenance_rate,
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
            wrap=partial(tracing.of_transport, base=server.url),
        )
        for name, server in known.items()
    }
