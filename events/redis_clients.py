"""Redis clients with deadlines, which reconnect when their server is no longer the master."""

from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events import redis_address, redis_url
from evosaga.events.auto_pipeline import AutoPipelineRedis
from evosaga.events.redis_errors import elsewhere

TIMEOUT: Final = 5.0
CONNECTIONS: Final = 32


class Leaving:
    """A connection that is not reused after its server has said that it is not the master.

    Replies under way are still read; the pool connects anew for the next command, and behind a
    service's address that leads to the new master.
    """

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """The next reply. Raises it when it is an error."""
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except RedisError as error:
            if elsewhere(error):
                self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class _LeavingTcp(Leaving, Connection):
    pass


class _LeavingTls(Leaving, SSLConnection):
    pass


class _LeavingSocket(Leaving, UnixDomainSocketConnection):
    pass


_LEAVING: Final = {
    Connection: _LeavingTcp,
    SSLConnection: _LeavingTls,
    UnixDomainSocketConnection: _LeavingSocket,
}


def options_of(url: str) -> dict[str, Any]:
    """The options of our clients. Raises ``ValueError`` for a URL that cannot be used."""
    read = redis_url.options(url)
    read["connection_class"] = _LEAVING[read.get("connection_class", Connection)]
    return read | {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}


def connect(url: str, prefix: str = "") -> "Redis":
    """A client with deadlines. A retried write may happen twice: readers deduplicate by id.

    Commands of many sagas share pipelines, which queue for a connection. The prefix goes before
    every key, stream and channel. Also of a Redis Cluster and of the master that Sentinels name.
    """
    address, options = redis_address.read(url), options_of(url)
    retries: dict[str, Any] = {
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
    }
    # Here, since most have a single Redis, and these take a while to import.
    if address.kind == "cluster":
        from evosaga.events import redis_cluster

        return redis_cluster.connect(address, options, prefix)
    if address.kind == "sentinel":
        from evosaga.events import redis_sentinel

        return redis_sentinel.connect(address, options, prefix, **retries)
    pool = BlockingConnectionPool(
        **options, max_connections=CONNECTIONS, timeout=TIMEOUT, **retries
    )
    client = cast(AutoPipelineRedis, AutoPipelineRedis.from_pool(pool))
    client.prefix = prefix
    return client


def prefix_of(redis: "Redis") -> str:
    """The prefix of a client; empty for a client that evosaga did not make."""
    return str(getattr(redis, "prefix", ""))


def client_of(options: dict[str, Any], kind: type[Redis] = AutoPipelineRedis) -> "Redis":
    """A client of one server alone, without retries: for a look, or for a node of a cluster."""
    pool = BlockingConnectionPool(
        **options, max_connections=CONNECTIONS, timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
    )
    return kind.from_pool(pool)


async def masters(redis: "Redis") -> "list[Redis]":
    """A client of each master, for what has to be asked of all of them: of a single Redis itself.

    Raises ``RedisError``.
    """
    found = getattr(redis, "masters", None)
    return [redis] if found is None else list(await found())


async def leave(redis: "Redis", error: BaseException) -> None:
    """The same for a client that evosaga did not make: drop its idle connections."""
    if elsewhere(error) and hasattr(redis, "connection_pool"):
        await redis.connection_pool.disconnect(inuse_connections=False)
