"""Client of one Evolution server: its calls, and the look that finds out what really is there.

What an answer proves is written down in ``answers`` and ``evidence``. Ownership is checked in one
call: Evolution's guards run in the order exists (404), then key (401), so with our own instance
token as the key, ``connectionState`` says absent, not ours, or ours. Deletes carry that token, and
so compare before they delete; the global key is for the one case that ``partial`` proves to be
ours. (All as observed on Evolution 2.3.6 and 2.3.7.)
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from evosaga.sagas.whatsapp.evolution.answer_origin import explained, recognised
from evosaga.sagas.whatsapp.evolution.answers import (
    MISCONFIGURED,
    UNREACHABLE,
    Answer,
    Operation,
    Presence,
    health,
)
from evosaga.sagas.whatsapp.evolution.circuit_breaker import (
    BreakerState,
    CallNotPermitted,
    CallOutcome,
    CircuitBreaker,
)
from evosaga.sagas.whatsapp.evolution.evidence import FIRST_LOOK, read_look
from evosaga.sagas.whatsapp.evolution.retry_after import seconds_of
from evosaga.sagas.whatsapp.evolution.single_flight import SingleFlight
from evosaga.sagas.whatsapp.evolution.tls import trusted

__all__ = ["Answer", "BreakerState", "EvolutionApi", "InstanceSighting", "Presence"]

_LARGEST_BODY: Final = 1024 * 1024
_LARGEST_LIST: Final = 64 * 1024 * 1024
_QUICK: Final = frozenset({Operation.STATE, Operation.OWN, Operation.NAMED, Operation.WEBHOOK})
_QUICK_TIMEOUT: Final = 8.0
"""Seconds for what reads one instance: after a silent create its step has little time left."""
_TIMEOUTS: Final = {"timeout": {"connect": 5.0}}
"""For the transport; ``timeout`` bounds the rest, and a timer for each read would come on top."""
_PLAIN: Final = re.compile(r"(/[A-Za-z0-9-]+)+")
"""Paths that mean what they say: nothing in them is quoted, resolved or a query."""
_PATIENCE: Final = 3.0
"""Seconds to wait for a place when many calls are out."""


@dataclass(frozen=True, slots=True)
class InstanceSighting:
    """What a look found, the evidence as a sentence, and the answer that it rests on."""

    sight: Presence
    evidence: str
    answer: Answer
    last: Operation = Operation.STATE
    """The question that ``answer`` answers."""

    @property
    def rowless(self) -> bool:
        """Whether it is half an instance of which there is no row: only memory has it."""
        return self.sight is Presence.HALF and self.last is Operation.NAMED


class EvolutionApi:
    """A client of one server. Use as an async context manager.

    No method raises for what the server or the network does; they answer with evidence. While the
    server is in trouble, or as busy as it should be, nothing is sent, and the answer says so.
    ``timeout`` is in seconds and bounds a whole call, however slowly the bytes trickle.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        concurrency: int = 64,
        queue: int | None = None,
        before_send: Callable[[], None] = lambda: None,
    ) -> None:
        """``concurrency``: so many calls are out at once, and ``queue`` so many wait to be.

        ``before_send`` may raise to keep a worker that is no longer in charge from acting.
        """
        self.url = url.rstrip("/")
        self._root = httpx.URL(self.url)
        self._api_key = api_key
        self._timeout = timeout
        self._before_send = before_send
        self._breaker = CircuitBreaker(_host(self.url), concurrency, queue=queue)
        self._list = SingleFlight(self._fetch_list)
        self._transport: AiohttpTransport | None = None

    async def __aenter__(self) -> Self:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),  # the breaker limits
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # aiohttp would silently send a GET or DELETE again when a kept connection breaks. A
        # second DELETE is a removal of its own on Evolution, so nothing is sent that we don't send.
        session._retry_connection = False
        # Straight to the transport: httpx's client above it merges URLs, headers and cookies and
        # follows redirects, none of which is wanted, for as much time as the call itself takes.
        self._transport = AiohttpTransport(verify=trusted(trust_env=True), client=session)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._list.close()
        if self._transport is not None:
            await self._transport.aclose()

    @property
    def state(self) -> BreakerState:
        """Whether calls are let through, and if not, why and for how long."""
        return self._breaker.state

    async def create(self, payload: dict[str, Any]) -> Answer:
        """POST /instance/create with the global key."""
        return await self._call(
            Operation.CREATE, "POST", "/instance/create", self._api_key, payload
        )

    async def delete(self, name: str, token: str) -> Answer:
        """DELETE the instance if, and only if, it carries this token."""
        return await self._call(
            Operation.DELETE, "DELETE", f"/instance/delete/{_part(name)}", token
        )

    async def delete_rowless(self, name: str) -> Answer:
        """DELETE whatever bears the name, with the global key: see ``partial``."""
        return await self._call(
            Operation.DELETE, "DELETE", f"/instance/delete/{_part(name)}", self._api_key
        )

    async def webhook(self, name: str, token: str) -> Answer:
        """The instance's webhook as its row says; ``null``: it has none."""
        return await self._call(Operation.WEBHOOK, "GET", f"/webhook/find/{_part(name)}", token)

    async def set_webhook(self, name: str, token: str, wanted: dict[str, Any]) -> Answer:
        """Let it be so: 201, and the row. What is left out of ``headers`` stays as it was."""
        path = f"/webhook/set/{_part(name)}"
        return await self._call(Operation.SET_WEBHOOK, "POST", path, token, {"webhook": wanted})

    async def set_settings(self, name: str, token: str, wanted: dict[str, Any]) -> Answer:
        """Write the instance's settings, all of them: 201."""
        path = f"/settings/set/{_part(name)}"
        return await self._call(Operation.SET_SETTINGS, "POST", path, token, wanted)

    async def connect(self, name: str, token: str, number: str | None) -> Answer:
        """Start pairing and ask for the QR code; takes two seconds on a closed instance."""
        query = f"?number={number}" if number else ""
        return await self._call(
            Operation.CONNECT, "GET", f"/instance/connect/{_part(name)}{query}", token
        )

    async def instances(self) -> Answer:
        """Every instance of the server, as its database has them. The body is shared: read only.

        With thousands of instances that is megabytes, so all who ask at the same time get the
        same list, one that was asked for after they came.
        """
        self._before_send()
        try:
            async with asyncio.timeout(self._timeout):
                return await self._list()
        except TimeoutError:
            return Answer(0, None, "nothing in time")

    async def look(self, name: str, token: str) -> Presence:
        """What is there under this name, in both of Evolution's views."""
        return (await self.see(name, token)).sight

    async def see(self, name: str, token: str) -> InstanceSighting:
        """The same, with the evidence."""
        asked = FIRST_LOOK
        while True:
            answer = await self._ask(asked, name, token)
            found, evidence = read_look(asked, answer, name, token)
            if isinstance(found, Presence):
                return InstanceSighting(found, evidence, answer, asked)
            asked = found

    async def memory(self, name: str, token: str | None) -> Answer:
        """The first question of a look alone: what Evolution's memory says of the instance.

        Without a token it is asked with the global key, which opens every instance and does not
        prove whose it is: for what a row of ours names and the list shows no token of.
        """
        return await self._ask(Operation.STATE, name, self._api_key if token is None else token)

    async def own_rows(self, token: str) -> Answer:
        """The rows that carry this token, as the list shows them: one, or none."""
        return await self._ask(Operation.OWN, "", token)

    async def _ask(self, asked: Operation, name: str, token: str) -> Answer:
        """One question of a look."""
        everything = "/instance/fetchInstances"
        match asked:
            case Operation.STATE:
                path = f"/instance/connectionState/{_part(name)}"
                return await self._call(asked, "GET", path, token)
            case Operation.OWN:
                return await self._call(asked, "GET", everything, token)
            case Operation.NAMED:
                path = f"{everything}?instanceName={_part(name)}"
                return await self._call(asked, "GET", path, self._api_key)
            case Operation.LIST:
                return await self.instances()
            case _:
                raise ValueError(f"{asked} is no question of a look")

    async def _fetch_list(self) -> Answer:
        # Not fenced: each of those who share it has been checked, and its pin is only one's.
        path = "/instance/fetchInstances"
        return await self._call(
            Operation.LIST, "GET", path, self._api_key, largest=_LARGEST_LIST, fenced=False
        )

    async def _call(
        self,
        asked: Operation,
        method: str,
        path: str,
        key: str,
        payload: dict[str, Any] | None = None,
        *,
        largest: int = _LARGEST_BODY,
        fenced: bool = True,
    ) -> Answer:
        timeout = min(self._timeout, _QUICK_TIMEOUT) if asked in _QUICK else self._timeout
        request = httpx.Request(
            method,
            _at(self._root, path) if _PLAIN.fullmatch(path) else self.url + path,
            headers={"apikey": key},
            json=payload,
            extensions=_TIMEOUTS,
        )
        # Names are checked long before; should one slip through, httpx would quietly turn
        # "/delete/.." into another path, so look at what would really be sent.
        if not request.url.raw_path.decode().endswith(path):
            raise ValueError("an instance name changed the path of a request")
        place = await self._breaker.enter(min(_PATIENCE, timeout / 2))
        if isinstance(place, CallNotPermitted):
            return _not_sent(place)
        told, why, began = None, f"{asked}: nothing in time", time.monotonic()
        try:
            if fenced:
                self._before_send()
            answer = recognised(asked, await self._send(request, timeout, largest))
            told = health(asked, answer)
            if told is CallOutcome.MISCONFIGURED and not answer.meaning:
                answer = explained(answer)
            why = "" if told is CallOutcome.WELL else f"{asked}: {answer.told}"
        finally:
            if told is None and time.monotonic() - began >= _QUICK_TIMEOUT:
                told = CallOutcome.SICK  # the step's own time was over before ours
            self._breaker.leave(place, told, why)
        if told is CallOutcome.WELL:
            return answer
        code = MISCONFIGURED if told is CallOutcome.MISCONFIGURED else answer.code
        wait = answer.retry_after or self._breaker.retry_after()
        return replace(answer, code=code, retry_after=wait)

    async def _send(self, request: httpx.Request, timeout: float, largest: int) -> Answer:
        assert self._transport is not None, "use EvolutionApi as a context manager"
        try:
            async with asyncio.timeout(timeout):
                response = await self._transport.handle_async_request(request)
                try:
                    return await _read(response, largest, self._api_key)
                finally:
                    await response.aclose()
        except (httpx.HTTPError, aiohttp.ClientError, OSError, TimeoutError) as error:
            if _may_have_been_sent(error):
                return Answer(0, None, _sentence(error))
            return Answer(0, None, _sentence(error), sent=False, code=UNREACHABLE)


def _at(root: httpx.URL, path: str) -> httpx.URL:
    """``root`` and a plain path behind it: to take each URL apart anew takes a tenth of a call.

    Past httpx's public face, whose version is pinned for such things.
    """
    url, parts = copy(root), root._uri_reference
    url._uri_reference = parts._replace(path=parts.path.rstrip("/") + path)
    return url


def _part(name: str) -> str:
    """The name as one segment of a path, or as a value of a query."""
    return quote(name, safe="")


def _not_sent(shut: CallNotPermitted) -> Answer:
    text = f"Evolution is not asked at the moment ({shut.reason})"
    return Answer(0, None, text, False, shut.retry_after, f"evolution_{shut.code}")


def _host(url: str) -> str:
    """The server for a log line: no user, no password, no path."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _may_have_been_sent(error: BaseException) -> bool:
    """Only an error of connecting proves that nothing was sent.

    The aiohttp transport reports a connection that broke *after* the request as ConnectTimeout
    too, so what counts is the cause underneath.
    """
    cause = error.__cause__ or error
    return not isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


async def _read(response: httpx.Response, largest: int, secret: str) -> Answer:
    # Through httpx's decoders only where there is something to decode.
    encoded = "content-encoding" in response.headers
    assert isinstance(response.stream, httpx.AsyncByteStream)
    raw = bytearray()
    async for chunk in response.aiter_bytes() if encoded else response.stream:
        raw += chunk
        if len(raw) > largest:
            return Answer(response.status_code, None, f"HTTP {response.status_code}, too large")
    try:
        # What the server says may end up in an error text, so it can't be trusted with the key.
        body = json.loads(raw.replace(secret.encode(), b"[redacted]"))
    except (ValueError, RecursionError):
        body = None
    well = 200 <= response.status_code < 300
    json_at_all = isinstance(body, dict | list) or raw.lstrip().startswith((b"{", b"["))
    null = raw.strip() == b"null"
    # What only begins like JSON is half an answer. Of trouble any page will do.
    alien = (well or 400 <= response.status_code < 500) and not json_at_all and not null
    return Answer(
        response.status_code,
        body,
        f"HTTP {response.status_code}" + (", and no JSON" if alien and well else ""),
        retry_after=None if well else seconds_of(response.headers),
        alien=alien,
        null=null,
    )


def _sentence(error: BaseException) -> str:
    """The kind of trouble, without the URL or headers an exception's text may carry."""
    if isinstance(error, TimeoutError):
        return "nothing in time"
    return type(error.__cause__ or error).__name__
