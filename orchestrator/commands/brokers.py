"""FastStream's brokers for a single Redis, a Redis Cluster and the master that Sentinels name.

The last two get clients of ours. redis-py's own of a cluster asks one node where the keys of each
XREADGROUP are, and no other one when that node is gone for good (``evosaga.events.redis_cluster``);
FastStream's of Sentinels leaves the connections to them open when it stops.
"""

from collections.abc import Mapping
from typing import Any

from faststream.redis import RedisBroker, RedisClusterBroker, RedisSentinelBroker
from faststream.redis.configs.state import (
    ConnectionState,
    RedisClusterConnectionState,
    RedisConnectionState,
)
from redis.asyncio import Redis

from evosaga.events.redis_address import Address, read
from evosaga.events.redis_connections import options_of
from evosaga.orchestrator.maintenance import tracing


def broker_of(redis_url: str, common: Mapping[str, Any]) -> RedisBroker:
    """A broker of what the URL names, not yet started. ``common``: what every broker is told."""
    address, options = read(redis_url), options_of(redis_url)
    if middlewares := tracing.middlewares():
        common = {**common, "middlewares": middlewares}
    url = address.plain.partition("?")[0]
    match address.kind:
        case "cluster":
            return _cluster(url, address, options, common)
        case "sentinel":
            return _sentinel(url, address, options, common)
    return RedisBroker(url, **common, **options)


def _cluster(
    url: str, address: Address, options: dict[str, Any], common: Mapping[str, Any]
) -> RedisBroker:
    from evosaga.events import redis_cluster

    class State(RedisClusterConnectionState):
        async def connect(self) -> Any:
            """The client, which connects when it first reads."""
            if self._client is None:
                # Not one that pipelines by itself: reads block.
                client: Any = redis_cluster.connect(address, options, kind=Redis)
                self._client, self._connected = client, True
            return self._client

    class Broker(RedisClusterBroker):
        def _make_connection_state(
            self, connection_options: dict[str, Any], kwargs: dict[str, Any]
        ) -> ConnectionState[Any]:
            return State(connection_options)

    return Broker(url, **common)


def _sentinel(
    url: str, address: Address, options: dict[str, Any], common: Mapping[str, Any]
) -> RedisBroker:
    from evosaga.events import redis_sentinel

    class State(RedisConnectionState):
        async def connect(self) -> Any:
            """The client, which asks the Sentinels when it first reads."""
            kind = redis_sentinel.PlainSentinelRedis
            client: Any = redis_sentinel.client_of_master(address, options, kind)
            self._client, self._connected = client, True
            return client

    class Broker(RedisSentinelBroker):
        def _make_connection_state(
            self, connection_options: dict[str, Any], kwargs: dict[str, Any]
        ) -> ConnectionState[Any]:
            return State(connection_options)

    named: dict[str, Any] = {
        "sentinels": list(address.nodes),
        "sentinel_master_name": address.service,
    }
    return Broker(url, **named, **common)
