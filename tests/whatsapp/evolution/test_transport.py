"""Answers as they come over the wire: their encoding, and the memory that they take."""

import asyncio
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp.client_reqrep import ClientRequest
from aiohttp.hdrs import ACCEPT_ENCODING

from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.evolution.transport import LARGEST_BODY, HttpTransport, request_to


@asynccontextmanager
async def answering(head: str, body: bytes, heads: list[str]) -> AsyncIterator[str]:
    """A server that says the same to everyone, and notes in ``heads`` how it was asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(f"HTTP/1.1 200 OK\r\n{head}{length}".encode() + body)
        with suppress(ConnectionError):  # whoever has seen enough hangs up
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def asked(url: str) -> Answer:
    transport = HttpTransport("key")
    await transport.open()
    try:
        request = request_to(url, "/instance/fetchInstances", "GET", "key", None)
        return await transport.send(request, 10, LARGEST_BODY)
    finally:
        await transport.close()


async def test_only_encodings_are_asked_for_that_can_be_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiohttp's own list has what aiohttp decodes, and on Python 3.14 that is zstd as well."""
    monkeypatch.setitem(ClientRequest.DEFAULT_HEADERS, ACCEPT_ENCODING, "gzip, deflate, zstd")
    heads: list[str] = []
    async with answering("Content-Encoding: deflate\r\n", zlib.compress(b"[1]"), heads) as url:
        assert (await asked(url)).body == [1]
    assert "accept-encoding: gzip, deflate\r\n" in heads[0].lower()


async def test_a_body_that_is_huge_once_decoded_is_refused_before_it_is_in_memory() -> None:
    packed = zlib.compressobj(9)
    zeros = bytes(1024 * 1024)
    bomb = b"".join([*(packed.compress(zeros) for _ in range(100)), packed.flush()])
    async with answering("Content-Encoding: deflate\r\n", bomb, []) as url:
        tracemalloc.start()
        try:
            answer = await asked(url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer.text == "HTTP 200, too large"
    assert peak < 50 * LARGEST_BODY
