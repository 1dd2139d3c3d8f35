"""A URL of Redis whose scheme does not go with the port: said at once, not after all retries."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evosaga.orchestrator.maintenance import redis_protocol
from evosaga.orchestrator.maintenance.redis_checks import RedisUnfit

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[int]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def redis(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As Redis: it waits for the end of a line, whatever comes."""
    await reader.readuntil(b"\r\n")
    writer.write(b"-NOAUTH Authentication required.\r\n")


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def secured(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a server of TLS that is spoken to in plain text: an alert, and the end."""
    await reader.read(1)
    writer.write(b"\x15\x03\x01\x00\x02\x02\x46")


async def test_a_scheme_that_goes_with_its_port_is_let_through(tmp_path: Path) -> None:
    async with listening(redis) as port:
        await redis_protocol.require(f"redis://127.0.0.1:{port}/0")
    await redis_protocol.require(f"unix://{tmp_path}/nothing")


async def test_another_protocol_is_said_in_under_five_seconds() -> None:
    for answer, scheme, sentence in (
        (redis, "rediss", "does not speak TLS: write redis://"),
        (secured, "redis", "write rediss://"),
        (web, "redis", "another server's"),
    ):
        async with listening(answer) as port:
            began = time.monotonic()
            with pytest.raises(RedisUnfit, match=sentence):
                await redis_protocol.require(f"{scheme}://127.0.0.1:{port}/0")
            assert time.monotonic() - began < 5


async def test_a_server_that_says_nothing_or_is_away_is_no_matter_of_the_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_protocol, "_PATIENCE", 0.3)
    async with listening(silent) as port:
        with pytest.raises(TimeoutError):
            await redis_protocol.require(f"redis://127.0.0.1:{port}/0")
    with pytest.raises(ConnectionRefusedError):
        await redis_protocol.require("rediss://127.0.0.1:1/0")
