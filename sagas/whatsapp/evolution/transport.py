"""HTTP exchanges with an Evolution server: a request and its Answer, bounded in time and size."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias

import aiohttp
import httpx

from evosaga.events.connection_errors import reason
from evosaga.events.retry_after import seconds_of
from evosaga.sagas.whatsapp.evolution.answers import UNREACHABLE, Answer
from evosaga.sagas.whatsapp.evolution.list_reader import SLICE, ListReader
from evosaga.sagas.whatsapp.evolution.session_transport import SessionTransport

LARGEST_BODY: Final = 1024 * 1024
LARGEST_LIST: Final = 1024 * 1024 * 1024
"""Bytes of a body, and of the list of all instances, of which only a part is kept."""
Wrap: TypeAlias = Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport]
"""Puts something around a transport that watches its requests."""
_encoded: Final = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False
).encode
_UNSENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_parsed: Final = lru_cache(maxsize=1024)(httpx.URL)
"""Each address is parsed once: it takes a tenth of a call."""


def request_to(
    url: str, path: str, method: str, key: str, payload: dict[str, Any] | None
) -> httpx.Request:
    """A request for ``path`` behind ``url``. Raises ``ValueError`` when it would go elsewhere."""
    headers, body = {"apikey": key}, b""
    if payload is not None:
        headers["Content-Type"], body = "application/json", _encoded(payload).encode()
    # As a stream, since httpx would work out headers that aiohttp works out again.
    request = httpx.Request(
        method, _parsed(url + path), headers=headers, stream=httpx.ByteStream(body)
    )
    request.read()
    # Names are checked long before; should one slip through, httpx would quietly turn
    # "/delete/.." into another path, so look at what would really be sent.
    if not request.url.raw_path.decode().endswith(path):
        raise ValueError("an instance name changed the path of a request")
    return request


class HttpTransport:
    """The connections to one server. ``secret`` is taken out of what the server says."""

    def __init__(self, secret: str, wrap: Wrap | None = None) -> None:
        self._secret = secret
        self._wrap = wrap
        self._transport: httpx.AsyncBaseTransport | None = None

    async def open(self) -> None:
        """To be called before the first ``send``."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),  # the breaker limits
            cookie_jar=aiohttp.DummyCookieJar(),
            # aiohttp would ask for zstd too where Python has it (3.14), and httpx can't decode it.
            headers={"Accept-Encoding": "gzip, deflate"},
        )
        # aiohttp would silently send a GET or DELETE again when a kept connection breaks. A
        # second DELETE is a removal of its own on Evolution, so nothing is sent that we don't send.
        session._retry_connection = False
        # Straight to the transport: httpx's client above it merges URLs, headers and cookies and
        # follows redirects, none of which is wanted, for as much time as the call itself takes.
        plain = SessionTransport(session)
        self._transport = self._wrap(plain) if self._wrap is not None else plain

    async def close(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.aclose()

    async def send(self, request: httpx.Request, timeout: float, largest: int) -> Answer:
        """The answer within ``timeout`` seconds, of ``largest`` bytes at the most; never raises."""
        assert self._transport is not None, "use EvolutionApi as a context manager"
        try:
            async with asyncio.timeout(timeout):
                response = await self._transport.handle_async_request(request)
                assert isinstance(response.stream, httpx.AsyncByteStream)
                try:
                    read = read_answer if largest == LARGEST_BODY else read_list
                    return await read(response, largest, self._secret)
                finally:
                    await response.stream.aclose()
        except (httpx.HTTPError, aiohttp.ClientError, OSError, TimeoutError) as error:
            if may_have_been_sent(error):
                return Answer(0, None, _sentence(error))
            return Answer(0, None, _sentence(error), sent=False, code=UNREACHABLE)


def may_have_been_sent(error: BaseException) -> bool:
    """Only an error of connecting proves that nothing was sent.

    What a transport of httpx makes of aiohttp's errors says less (one that broke *after* the
    request is a ConnectTimeout too), so where there is a cause of aiohttp's that counts as well.
    """
    return not any(isinstance(one, _UNSENT) for one in (error, error.__cause__))


async def read_answer(response: httpx.Response, largest: int, secret: str) -> Answer:
    """The answer with its whole body."""
    return await _read(response, aiter(_chunks(response)), bytearray(), largest, secret)


async def read_list(response: httpx.Response, largest: int, secret: str) -> Answer:
    """The answer with a list as its body, of which no more is kept than is used.

    What is no list is read like any other answer.
    """
    chunks, size = aiter(_chunks(response)), 0
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if head.strip():
            break
    if response.status_code != 200 or not head.lstrip().startswith(b"["):
        return await _read(response, chunks, head, LARGEST_BODY, secret)
    reader, piece = ListReader(secret), bytes(head)
    while piece:
        size += len(piece)
        if size > largest:
            return _too_large(response)
        for at in range(0, len(piece), SLICE):
            reader.feed(piece[at : at + SLICE])
            await asyncio.sleep(0)  # what has arrived already would be read without a pause
        piece = await anext(chunks, b"")
    return Answer(response.status_code, reader.found, f"HTTP {response.status_code}")


async def _read(
    response: httpx.Response,
    chunks: AsyncIterator[bytes],
    raw: bytearray,
    largest: int,
    secret: str,
) -> Answer:
    """The answer with its whole body, which begins with ``raw``."""
    async for chunk in chunks:
        raw += chunk
        if len(raw) > largest:
            return _too_large(response)
    return _answer(response, raw, secret)


def _chunks(response: httpx.Response) -> AsyncIterable[bytes]:
    """The body, through httpx's decoders only where there is something to decode."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.aiter_bytes() if "content-encoding" in response.headers else response.stream


def _too_large(response: httpx.Response) -> Answer:
    return Answer(response.status_code, None, f"HTTP {response.status_code}, too large")


def _answer(response: httpx.Response, raw: bytearray, secret: str) -> Answer:
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
    return "nothing in time" if isinstance(error, TimeoutError) else reason(error)
