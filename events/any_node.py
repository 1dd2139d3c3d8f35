"""Connections to whichever node of a cluster answers."""

from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events.redis_address import Node


class AnyNode:
    """A connection to whichever node answers: for pub/sub, which reaches all of them."""

    def __init__(self, *, places: Callable[[], list[Node]], **options: Any) -> None:
        self._places = places
        super().__init__(**options)

    async def connect(self) -> None:
        """Try one node after the other. Raises what the last one had to say."""
        trouble: BaseException | None = None
        for host, port in self._places():
            self.host, self.port = host, port
            try:
                return await super().connect()  # type: ignore[misc, no-any-return]
            except (RedisConnectionError, RedisTimeoutError) as error:
                trouble = error
        assert trouble is not None
        raise trouble


class AnyNodeTcp(AnyNode, Connection):
    pass


class AnyNodeTls(AnyNode, SSLConnection):
    pass
