"""HTTP connections: the number allowed, and deadlines for incomplete requests.

uvicorn has a deadline for a connection that is idle between two requests, and none for a request
that never ends: a client that sends half a head would hold a connection, and so a file, for ever.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_logger = structlog.get_logger("evosaga.api")
HEAD_SECONDS: Final = 10.0
"""From the first byte of a head, or from the opening of the connection, to the end of the head."""
BODY_SECONDS: Final = 60.0
"""From the end of the head to the end of the body. Routes that read the body have a shorter
deadline (408, see ``middleware``); this one is for bodies that no route reads.
"""
_SAY_EVERY: Final = 60.0
_FULL: Final = "socket.accept() out of system resource"
"""asyncio's message for it (``asyncio/selector_events.py``)."""
_GARBAGE: Final = ("Invalid HTTP request", "Unsupported upgrade", "No supported WebSocket")
_LATE: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 2\r\n"
    b"Content-Length: 0\r\n\r\n",
)


class RateLimitedLog:
    """Limits the log lines about one kind of event."""

    def __init__(self, seconds: float = _SAY_EVERY) -> None:
        self._seconds = seconds
        self._last = float("-inf")
        self._times = 0

    def due(self) -> int:
        """Events since the last line, when it is time for a line; 0: write nothing now."""
        self._times += 1
        if time.monotonic() - self._last < self._seconds:
            return 0
        self._last, times, self._times = time.monotonic(), self._times, 0
        return times


class Connection(H11Protocol):
    """One connection: each request has a deadline, and at most ``most`` connections are open."""

    def __init__(
        self,
        *args: Any,
        most: int,
        crowded: RateLimitedLog,
        idle: "dict[Connection, None]",
        **more: Any,
    ) -> None:
        """``idle``: all that wait for a request, the longest first; looking for it is no search."""
        super().__init__(*args, **more)
        self._idle = idle
        self._most = most
        self._crowded = crowded
        self._phase: tuple[str, object] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self._most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether no request of this connection is being processed."""
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        return cycle is None or cycle.response_complete

    def _watch(self) -> None:
        """Start a deadline when a head or a body begins; later bytes do not extend it."""
        phase = self._now()
        same = phase == self._phase
        if not (same and self.waits and self in self._idle):
            self._idle.pop(self, None)
            if self.waits:
                self._idle[self] = None
        if same:
            return
        self._phase = phase
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if phase[0] in ("head", "body"):
            seconds = HEAD_SECONDS if phase[0] == "head" else BODY_SECONDS
            self._deadline = self.loop.call_later(seconds, self._too_late)

    def _now(self) -> tuple[str, object]:
        """The part of the request that is being received, and which request it is."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.cycle
        cycle: RequestResponseCycle | None = self.cycle
        begun = cycle is None or self.conn.trailing_data[0]
        return ("head" if self.conn.their_state is h11.IDLE and begun else "none"), cycle

    def _too_late(self) -> None:
        if self.waits and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(_LATE[0])
        self.transport.close() if self.waits else self.transport.abort()

    def _make_room(self) -> None:
        """Close the connection that has been idle longest; if all are busy, refuse the new one."""
        longest = next((one for one in self._idle if one.waits and one is not self), None)
        if times := self._crowded.due():
            _logger.warning(
                "too many http connections",
                most=self._most,
                working=len(self.connections) - len(self._idle),
                times=times,
                cure="EVOSAGA_HTTP_CONNECTIONS and `ulimit -n` allow more",
            )
        if longest is not None:
            del self._idle[longest]  # it is lost a moment later
            longest.transport.close()
            return
        self.transport.write(_LATE[1])
        self.transport.close()


def connections_of(most: int) -> Any:
    """uvicorn's connection factory: at most ``most``, and at most half of the allowed open files.

    The other half is for Postgres, Redis and Evolution: a worker beside the API must go on.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = most if files == resource.RLIM_INFINITY else max(1, min(most, files // 2))
    return partial(Connection, most=most, crowded=RateLimitedLog(), idle={})


class _Garbage(logging.Filter):
    """Limits uvicorn's line about an invalid HTTP request to one a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._seldom = RateLimitedLog()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        return not str(record.msg).startswith(_GARBAGE) or bool(self._seldom.due())


@contextmanager
def rate_limited_log() -> Iterator[None]:
    """Limits the log lines that clients can cause, so that they cannot fill the disk.

    While no file is left asyncio reports every failed accept, some hundred a second: this becomes
    one line a minute, as for invalid requests.
    """
    garbage, uvicorns = _Garbage(), logging.getLogger("uvicorn.error")
    loop = asyncio.get_running_loop()
    before, full = loop.get_exception_handler(), RateLimitedLog()

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") != _FULL:
            before(loop, context) if before else loop.default_exception_handler(context)
        elif times := full.due():
            _logger.error(
                "no file is left for a connection",
                reason=str(context.get("exception")),
                times=times,
                cure="raise `ulimit -n`",
            )

    loop.set_exception_handler(tell)
    uvicorns.addFilter(garbage)
    try:
        yield
    finally:
        uvicorns.removeFilter(garbage)
        loop.set_exception_handler(before)
