"""Clients of what a Redis URL names: one server, a cluster, the master that Sentinels name."""

from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events import redis_address
from evosaga.events.auto_pipeline import AutoPipelineRedis
from evosaga.events.redis_connections import CONNECTIONS, TIMEOUT, options_of
from evosaga.events.redis_errors import elsewhere


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
