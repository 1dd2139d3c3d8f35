"""Transient errors: a server that is away, refuses for a while, or could not be reached.

Code that catches every exception asks here first, so that an outage is waited out and never
reported as a bug. The lists are those of ``evosaga.events.database`` for Postgres
and of ``evosaga.events.redis_errors`` for Redis; httpx has its own name for a call
that did not get through.
"""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from redis.exceptions import RedisError

from evosaga.events import redis_errors
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT

_Answer = TypeVar("_Answer")
_logger = structlog.get_logger("evosaga.outages")
_HTTP: Final = ("NetworkError", "ConnectTimeout", "PoolTimeout", "RemoteProtocolError")
"""Of httpx: no connection, or one that broke. What is merely slow is a timeout, and costs an
attempt."""
_NETWORK: Final = (ConnectionError, TimeoutError, socket.gaierror, socket.herror)


def is_transient(error: BaseException) -> bool:
    """Whether this is an outage, whichever server it is of."""
    if isinstance(error, RedisError):
        return redis_errors.misconfigured(error) is not None or redis_errors.passing(error)
    return isinstance(error, TRANSIENT) or _is_of_httpx(error)


def _is_of_httpx(error: BaseException) -> bool:
    """Where nobody has imported httpx, which takes as long as all of Redis, no error is of it."""
    if (httpx := sys.modules.get("httpx")) is None:
        return False
    return isinstance(error, tuple(getattr(httpx, name) for name in _HTTP))


def is_transient_for_step(error: BaseException) -> bool:
    """The same of what a step raised: it may as well look for a file that is not there."""
    if isinstance(error, OSError) and not isinstance(error, _NETWORK):
        return type(error) is OSError  # what asyncio raises when none of several addresses answers
    return is_transient(error)


async def retry_while_transient(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """What Postgres answers, waiting while it is away, as an append does."""
    pause = 0.05
    while True:
        try:
            return await ask()
        except TRANSIENT as trouble:
            _logger.warning("postgres_unavailable", reason=reason(trouble))
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)
