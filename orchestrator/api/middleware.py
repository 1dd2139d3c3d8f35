"""ASGI middleware: body limits, security headers, error mapping and rate limits.

Plain ASGI, since it has to count the body as it comes in and change every answer that goes out.
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

from evosaga.events import trace_context
from evosaga.orchestrator.api.problems import Draw, Problem, answer, from_exception
from evosaga.orchestrator.api.reads import note_writing
from evosaga.orchestrator.engine.transient_errors import is_transient

COMMAND_BYTES: Final = 64 * 1024
AT_THE_DOOR: Final = (
    *("forbidden_character", "ambiguous_length"),
    *("body_timeout", "oversized", "unsupported_encoding"),
)
"""The codes that any route may answer before the route itself runs."""
_BODY_SECONDS: Final = 30.0
"""Seconds after which a body that is not complete is refused."""
_CALLERS: Final = 10_000
_MISTAKES: Final = 20
_SLOWER: Final = 0.002
"""Seconds by which each further wrong key slows the answer."""
_TOO_OFTEN: Final = "this key may ask {rate:g} times a second"
_OURS: Final = "evosaga."
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
"""On every answer that does not set them itself, as the pages do."""


class RateLimiter:
    """A token bucket for each name, in the memory of this process.

    ``rate`` is per second, ``burst`` is the most at once. Refused requests cost no token: an
    impatient caller gets as many as a patient one.
    """

    def __init__(self, rate: float, burst: float | None = None, said: str = _TOO_OFTEN) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate if burst is None else burst)
        self._said = said
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, name: str) -> float:
        """Take one token; returns how many are spent and not yet refilled. Raises the 429."""
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
    """Slows down clients that send wrong keys: after some each answer takes longer, then it is 429.

    Other clients' wrong keys never delay a right one. Keys are safe from guessing by their length
    (``api_keys.SHORTEST``); this keeps guessing slow and cheap for the server.
    """

    def __init__(self) -> None:
        self._rates = RateLimiter(0.5, 200, "too many wrong keys came from this address")

    async def another(self, connection: HTTPConnection) -> None:
        """Count one more from that address. Raises the 429."""
        spent = self._rates.spend(address_of(connection))
        await asyncio.sleep(max(0.0, spent - _MISTAKES) * _SLOWER)


def address_of(connection: HTTPConnection) -> str:
    """The client's address; for IPv6 its network, since each client has a whole one.

    Behind a proxy it is the address in the proxy's header, if FORWARDED_ALLOW_IPS lets uvicorn
    trust it.
    """
    host = connection.client.host if connection.client else "unknown"
    with contextlib.suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False))
    return host


class GuardMiddleware:
    """Limits bodies, adds security headers, and turns every exception into a problem."""

    def __init__(self, app: ASGIApp, draw: Draw) -> None:
        self._app = app
        self._draw = draw

    async def _tell(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        page = None
        with contextlib.suppress(Exception):  # the cause of this error may break its page as well
            page = self._draw(Request(scope), problem)
        await (page or answer(problem))(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # the same as GET, without the body (RFC 9110, 9.3.2)
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        given = Headers(scope=scope).get("traceparent")
        trace_context.incoming.set(trace_context.valid(given))
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
                note_writing(scope, status, headers)
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
            if not begun:  # else the server would see half an answer and break the connection
                await self._tell(from_exception(error, correlation_id), scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            spent = time.monotonic() - began
            scope["app"].state.metrics.answered(method, route, status, spent)


class _HeadAnswered(Exception):
    """Ends a stream that was asked with HEAD, after its head has been sent."""


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
    """Raise what can be refused before the body has arrived."""
    headers = Headers(scope=scope)
    if "content-length" in headers and "transfer-encoding" in headers:
        # A proxy that goes by the other one takes the rest for the next request (RFC 9112, 6.3).
        raise Problem(
            "ambiguous_length",
            "send either Content-Length or Transfer-Encoding, not both",
            headers={"Connection": "close"},
        )
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
    """The body, counted as it comes in: Content-Length proves nothing."""
    largest, read, complete = _largest(scope), 0, False
    deadline: float | None = None

    async def counted() -> Message:
        nonlocal read, complete, deadline
        if complete:  # after this, only the client's disconnect can come
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
    """The limit of bodies. Webhooks have their own (``BodyReader``): the sender is authenticated
    first, and refusals are logged.
    """
    return inf if scope["path"].startswith("/webhooks/") else COMMAND_BYTES


def _too_large(largest: float) -> Problem:
    return Problem("oversized", f"a body may have {largest:.0f} bytes here")


def _place(error: Exception) -> str:
    """The last place in this project's code; an exception's text may quote secrets."""
    ours = [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(_OURS)
    ]
    return ours[-1] if ours else "unknown"
