"""A client of the master that Sentinels name, asked anew for every connection."""

from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff

from evosaga.events.auto_pipeline import AutoPipelineRedis
from evosaga.events.redis_address import Address
from evosaga.events.redis_connections import Leaving

_Client = TypeVar("_Client", bound=Redis)
PATIENCE: Final = 2.0
"""Seconds that one Sentinel may take before the next one is asked."""


class _Master(Leaving, SentinelManagedConnection):
    pass


class _MasterTls(Leaving, SentinelManagedSSLConnection):
    pass


class SentinelRedis(AutoPipelineRedis):
    """Like ``Redis``, always of the service's master."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to the master and to the Sentinels."""
        await super().aclose(close_connection_pool)
        await _sentinels_of(self).aclose()


class PlainSentinelRedis(Redis):
    """The same without pipelines: for commands that block."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to the master and to the Sentinels."""
        await super().aclose(close_connection_pool)
        await _sentinels_of(self).aclose()


def _sentinels_of(client: Redis) -> Sentinel:
    found: Sentinel = cast(SentinelConnectionPool, client.connection_pool).sentinel_manager
    return found


def connect(
    address: Address, options: dict[str, Any], prefix: str = "", **more: Any
) -> SentinelRedis:
    """A client of the service's master, which connects when it is first asked."""
    client = client_of_master(address, options | more, SentinelRedis)
    client.prefix = prefix
    return client


def client_of_master(address: Address, options: dict[str, Any], kind: type[_Client]) -> _Client:
    """A client of this kind. ``options``: of a connection to the master."""
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.nodes, sentinel_kwargs=options_of_sentinels(address, options)
    )
    kept = options_of_master(address, options)
    made: Any = sentinels.master_for(address.service, redis_class=kind, **kept)
    return cast(_Client, made)


def options_of_master(address: Address, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a connection to the master, whose address Sentinels know."""
    kept = {name: value for name, value in options.items() if name not in ("host", "port")}
    return kept | {"connection_class": _MasterTls if address.tls else _Master}


def options_of_sentinels(address: Address, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a connection to a Sentinel. One that is silent is passed over at once."""
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    waits = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
    retry = {"retry": Retry(NoBackoff(), 0)}
    return {**address.sentinel, **waits, **retry, **tls, **({"ssl": True} if address.tls else {})}
