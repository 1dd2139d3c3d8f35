"""Connections to the HTTP server: quick ones, half-said ones, too many, and none left to open."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from evosaga.orchestrator.api import connection_limits
from evosaga.orchestrator.api.connection_limits import connections_of
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import CREATE, OPERATOR, asked, client_with, served
from tests.support.waiting import eventually

HEAD = f"POST /commands HTTP/1.1\r\nHost: x\r\nX-API-Key: {OPERATOR}\r\n"


def tcp_sockets() -> list[socket.socket]:
    """Every TCP connection of this process, as duplicates."""
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                one = socket.socket(fileno=os.dup(number))
                with contextlib.suppress(OSError):
                    inet = one.family in (socket.AF_INET, socket.AF_INET6)
                    if inet and one.type == socket.SOCK_STREAM and one.getpeername():
                        found.append(one)
                        continue
                one.close()
    return found


@contextlib.contextmanager
def held() -> Iterator[list[socket.socket]]:
    sockets = tcp_sockets()
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
async def test_no_tcp_connection_of_ours_holds_a_small_packet_back(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    """Those of the API, of its client, to Evolution and of the simulator."""
    evolution.arm("slow_after", operation="create", seconds=1.0)
    creating = asyncio.create_task(operator.post(CREATE, json=asked()))
    await eventually(lambda: evolution.live() != {} or creating.done(), 20)
    with held() as sockets:
        assert len(sockets) >= 2
        for one in sockets:
            told = f"{one.getsockname()} to {one.getpeername()}"
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), told
    assert (await creating).status_code == 201


async def test_an_answer_on_a_connection_that_is_kept_open_does_not_wait_for_an_acknowledgement(
    operator: httpx.AsyncClient,
) -> None:
    """The kernel would delay that one by 40 ms; so even the quickest answer would be as slow."""
    took = []
    for _ in range(50):
        began = time.perf_counter()
        assert (await operator.get("/healthz")).status_code == 200
        took.append(time.perf_counter() - began)
    assert min(took) < 0.035, "on a busy machine some answers are late, but not all"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connection_limits, "BODY_SECONDS", 0.4)


async def opened(where: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(where)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def trickle(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """A byte now and then, so that the connection never looks idle."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("first", "piece", "answer"),
    [
        (b"", b"", b""),
        (b"GET /healthz HTT", b"", b"HTTP/1.1 408 "),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-", b"a", b"HTTP/1.1 408 "),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he", b"a", b"HTTP/1.1 200 "),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", b"a", b"HTTP/1.1 200"),
        (b"POST /commands HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", b" ", b"HTTP/1.1 4"),
        (f"{HEAD}Content-Length: 999\r\n\r\n".encode(), b" ", b""),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), b"1\r\n \r\n", b""),
    ],
)
@pytest.mark.usefixtures("hurried")
async def test_a_request_that_never_ends_loses_its_connection(
    address_: str, first: bytes, piece: bytes, answer: bytes
) -> None:
    reader, writer = await opened(address_)
    writer.write(first)
    trickling = asyncio.create_task(trickle(writer, piece)) if piece else None
    told = b""
    with contextlib.suppress(ConnectionError):  # which would take what was read with it
        while more := await asyncio.wait_for(reader.read(1024), 10):
            told += more
    assert told.startswith(answer)
    if trickling:
        trickling.cancel()
    writer.close()


@pytest.mark.usefixtures("hurried")
async def test_a_request_that_is_only_slow_to_be_answered_has_no_deadline(
    operator: httpx.AsyncClient, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow", operation="create", seconds=1.5)
    assert (await operator.post(CREATE, json=asked())).status_code == 201
    assert (await operator.get("/healthz")).status_code == 200


@contextlib.asynccontextmanager
async def few(parts: AppContext, settings: Settings, most: int) -> AsyncIterator[str]:
    fewer = Settings.model_validate(settings.model_dump() | {"http_connections": most})
    fields = {name: getattr(parts, name) for name in parts.__slots__}
    async with served(AppContext(**fields | {"settings": fewer})) as where:
        yield where


async def test_connections_that_say_nothing_make_room_for_those_that_ask(
    parts: AppContext, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with few(parts, settings, 8) as where:
        silent = [await opened(where) for _ in range(60)]
        for _, writer in silent:
            writer.write(b"GET /healthz HTTP/1.1\r\nX-Half: ")
        async with client_with(where, OPERATOR) as client:
            for _ in range(3):
                assert (await client.get("/sagas?limit=1")).status_code == 200
        ended = await asyncio.gather(*(at_end(reader) for reader, _ in silent))
        assert sum(ended) >= 50
        for _, writer in silent:
            writer.close()
    assert capsys.readouterr().out.count("too many http connections") <= 1


async def at_end(reader: asyncio.StreamReader) -> bool:
    try:
        return not await asyncio.wait_for(reader.read(), 0.5)
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def test_when_every_connection_is_at_work_another_is_told_to_come_again(
    parts: AppContext, settings: Settings, evolution: SimulatedEvolution
) -> None:
    evolution.arm("slow_after", operation="create", seconds=1.5)
    async with few(parts, settings, 1) as where, client_with(where, OPERATOR) as client:
        creating = asyncio.create_task(client.post(CREATE, json=asked()))
        await eventually(lambda: evolution.live() != {}, 20)
        reader, writer = await opened(where)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in answer
        writer.close()
        assert (await creating).status_code == 201


def test_half_of_the_files_are_left_to_what_is_behind_the_api() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        assert connections_of(1000).keywords["most"] == 200
        assert connections_of(100).keywords["most"] == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_full_file_table_is_one_line_and_the_api_answers_when_there_is_room_again(
    parts: AppContext,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", 0.2)
    async with served(parts) as where:
        ends = urlsplit(where)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [socket.socket() for _ in range(20)]
        used = max(int(one) for one in os.listdir("/proc/self/fd"))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
            filled = fill_the_table()
            with caplog.at_level(logging.WARNING):
                for one in clients:
                    one.setblocking(False)
                    one.connect_ex((str(ends.hostname), int(ends.port or 0)))
                await asyncio.sleep(0.5)  # in which asyncio tries again twice
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in filled:
                os.close(number)
        told = caplog.text + capsys.readouterr().out
        for one in clients:
            one.close()
        assert "socket.accept() out of system resource" not in told
        assert told.count("no file is left for a connection") == 1
        async with client_with(where, OPERATOR) as client:
            assert (await client.get("/healthz")).status_code == 200


def fill_the_table() -> list[int]:
    filled = []
    with contextlib.suppress(OSError):
        while True:
            filled.append(os.open(os.devnull, os.O_RDONLY))
    return filled


async def test_garbage_is_answered_and_fills_no_log(
    address_: str, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    with caplog.at_level(logging.WARNING):
        for raw in [b"\x16\x03\x01\r\n\r\n", upgrade] * 20:
            reader, writer = await opened(address_)
            writer.write(raw)
            assert await asyncio.wait_for(reader.readline(), 10)
            writer.close()
    assert len(caplog.records) <= 2
