"""The door in front of every route: what is too large, too much or not ours to read stays outside.

Plain ASGI, since it has to see the body while it comes in and every answer as it goes out.
"""

import asyncio
import contextlib
import time
import traceback
from collections import OrderedDict
from ipaddress import ip_address, ip_network
from math import ceil, inf
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from evosaga.orchestrator.api.problems import Draw, Problem, answer, from_exception
from evosaga.orchestrator.engine.transient_errors import is_transient

COMMAND_BYTES: Final = 64 * 1024
AT_THE_DOOR: Final = ("forbidden_character", "body_timeout", "oversized", "unsupported_encoding")
"""The codes of what any route may be answered with before it is asked."""
_BODY_SECONDS: Final = 30.0
"""A body that trickles longer than that is not waited for."""
_CALLERS: Final = 10_000
_MISTAKES: Final = 20
_SLOWER: Final = 0.002
"""Seconds that the answer to each further wrong key takes longer."""
_TOO_OFTEN: Final = "this key may ask {rate:g} times a second"
_OURS: Final = ("orchestrator.", "sagas.", "events.", "migrations")
_logger = structlog.get_logger("evosaga.api")

_EVENTS: Final = "text/event-stream"

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
}
"""On every answer that does not say otherwise itself, as the pages do."""


class RateLimiter:
    """A token bucket for each name, in the memory of this process.

    ``rate`` are those a second, ``burst`` those at once. Who is refused loses nothing by asking: an
    impatient caller gets as many as a patient one.
    """

    def __init__(self, rate: float, burst: float | None = None, said: str = _TOO_OFTEN) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate if burst is None else burst)
        self._said = said
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, name: str) -> float:
        """One of that name; how many are spent and not given back yet. Raises the 429."""
        now = time.monotonic()
        left, at = self._left.pop(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        self._left[name] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > _CALLERS:
            self._left.popitem(last=False)
        if left < 1:
            wait = max(1, ceil((1 - left) / self._rate))
            detail = f"{self._said.format(rate=self._rate)}; wait {wait} s"
            raise Problem("rate_limited", detail, headers={"Retry-After": str(wait)})
        return self._burst - left + 1


class WrongKeys:
    """Slows down who shows wrong keys: after some each answer takes longer, then it is 429.

    A right key is never held up by somebody else's wrong ones. That none can be guessed is a
    matter of its length (``keys.SHORTEST``); this keeps guessing slow, and from costing us.
    """

    def __init__(self) -> None:
        self._rates = RateLimiter(0.5, 200, "too many wrong keys came from this address")

    async def another(self, connection: HTTPConnection) -> None:
        """One more from that address. Raises the 429."""
        spent = self._rates.spend(address_of(connection))
        await asyncio.sleep(max(0.0, spent - _MISTAKES) * _SLOWER)


def address_of(connection: HTTPConnection) -> str:
    """Who is on the other side; the whole network of an IPv6 one, since everybody has one.

    Behind a proxy it is what the proxy says, if uvicorn may believe it (FORWARDED_ALLOW_IPS).
    """
    host = connection.client.host if connection.client else "unknown"
    with contextlib.suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False))
    return host


class GuardMiddleware:
    """Bodies within limits in, safe headers out, and no exception to the outside."""

    def __init__(self, app: ASGIApp, draw: Draw) -> None:
        self._app = app
        self._draw = draw

    async def _tell(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        page = None
        with contextlib.suppress(Exception):  # what broke just now may break its page as well
            page = self._draw(Request(scope), problem)
        await (page or answer(problem))(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # what GET says, without the body (RFC 9110, 9.3.2)
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        correlation_id, began = str(uuid7()), time.monotonic()
        begun, status = False, 0

        async def told(message: Message) -> None:
            nonlocal begun, status
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = correlation_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            _refuse(scope)
            await self._app(scope, _limited(scope, receive), told)
        except Problem as problem:
            if not begun:
                await self._tell(problem, scope, receive, told)
        except _HeadAnswered:
            pass
        except Exception as error:
            where = _place(error)
            tell = _logger.warning if is_transient(error) else _logger.error
            tell(
                "request failed",
                correlation_id=correlation_id,
                error=type(error).__name__,
                where=where,
                exc_info=scope["app"].state.parts.settings.log_level == "debug",
            )
            if not begun:  # else the server sees half an answer, and breaks the connection
                await self._tell(from_exception(error, correlation_id), scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            spent = time.monotonic() - began
            scope["app"].state.metrics.answered(method, route, status, spent)


class _HeadAnswered(Exception):
    """A stream was asked for its head, which it has sent: its events are not waited for."""


def _without_body(send: Send) -> Send:
    async def head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            if Headers(raw=message["headers"]).get("content-type", "").startswith(_EVENTS):
                await send({"type": "http.response.body"})
                raise _HeadAnswered
        elif not message.get("more_body", False):
            await send({"type": "http.response.body"})

    return head


def _refuse(scope: Scope) -> None:
    """What can be refused before anything of the body has come."""
    headers = Headers(scope=scope)
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise Problem(
            "unsupported_encoding",
            "send the body as it is, without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
        raise Problem("forbidden_character", "a NUL in the address")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > (largest := _largest(scope)):
        raise _too_large(largest)


def _limited(scope: Scope, receive: Receive) -> Receive:
    """The body, counted while it comes in: what Content-Length says proves nothing."""
    largest, read, complete = _largest(scope), 0, False
    deadline: float | None = None

    async def counted() -> Message:
        nonlocal read, complete, deadline
        if complete:  # from here on it is only waited for the client to leave
            return await receive()
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + _BODY_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise Problem(
                "body_timeout", f"a body must come within {_BODY_SECONDS:.0f} s"
            ) from None
        read += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if read > largest:
            raise _too_large(largest)
        return message

    return counted


def _largest(scope: Scope) -> float:
    """Webhooks have a limit of their own (``webhooks.bodies``): who delivers is looked at first,
    and what is refused is told in the log.
    """
    return inf if scope["path"].startswith("/webhooks/") else COMMAND_BYTES


def _too_large(largest: float) -> Problem:
    return Problem("oversized", f"a body may have {largest:.0f} bytes here")


def _place(error: Exception) -> str:
    """The last place in our own code; the text of an exception may quote what it should not."""
    ours = [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(_OURS)
    ]
    return ours[-1] if ours else "unknown"
