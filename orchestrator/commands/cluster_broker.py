"""FastStream's broker for a Redis Cluster, with our client.

redis-py's asks one node of the cluster where the keys of each XREADGROUP are, and no other one when
that node is gone for good (``evosaga.events.redis_cluster``).
"""

from collections.abc import Mapping
from typing import Any

from faststream.redis import RedisBroker, RedisClusterBroker
from faststream.redis.configs.state import ConnectionState, RedisClusterConnectionState
from redis.asyncio import Redis

from evosaga.events import redis_cluster
from evosaga.events.redis_address import Address


def cluster_broker(
    address: Address, options: dict[str, Any], common: Mapping[str, Any]
) -> RedisBroker:
    """A broker of that cluster, not yet started. ``common``: what every broker of ours is told."""

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

    return Broker(address.plain.partition("?")[0], **common)
