"""httpx's transport on a session of aiohttp, for requests and answers as Evolution has them.

Like ``httpx_aiohttp.AiohttpTransport``, and a third faster, since it translates neither errors nor
timeouts for each call: what it raises is aiohttp's, and proxies and streamed requests it has not.
"""

from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import httpx
from multidict import CIMultiDict
from yarl import URL

_TIMEOUT: Final = aiohttp.ClientTimeout(sock_connect=5.0)
"""Seconds; the caller bounds the rest, and a timer for each read would come on top."""
_PIECE: Final = 16 * 1024
"""Bytes of a body that are decoded at once: compressed, they may be a thousand times as many."""
_EXTENSIONS: Final = {"http_version": b"HTTP/1.1"}


class SessionTransport(httpx.AsyncBaseTransport):
    """``session`` is closed with it."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body not yet read. Raises ``aiohttp.ClientError`` and ``OSError``."""
        answer = await self._session.request(
            request.method,
            # Encoded, or it would be normalised once more and might be another address.
            URL(str(request.url), encoded=True),
            headers=CIMultiDict([(k.decode(), v.decode()) for k, v in request.headers.raw]),
            data=request.content or None,
            allow_redirects=False,
            auto_decompress=False,
            timeout=_TIMEOUT,
        )
        return httpx.Response(
            answer.status,
            headers=answer.raw_headers,
            stream=_Body(answer),
            extensions=_EXTENSIONS,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class _Body(httpx.AsyncByteStream):
    """As it arrives, still encoded."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._answer.content.read(_PIECE):
            yield chunk

    async def aclose(self) -> None:
        self._answer.release()
        await self._answer.wait_for_close()
