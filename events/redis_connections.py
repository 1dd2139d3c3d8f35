"""Connections to one Redis server, with deadlines; left when it is no longer the master."""

from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from evosaga.events import redis_url
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


def client_of(options: dict[str, Any], kind: type[Redis] = AutoPipelineRedis) -> "Redis":
    """A client of one server alone, without retries: for a look, or for a node of a cluster."""
    pool = BlockingConnectionPool(
        **options, max_connections=CONNECTIONS, timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
    )
    return kind.from_pool(pool)
