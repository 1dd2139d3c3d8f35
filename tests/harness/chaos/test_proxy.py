"""The fault proxy does what it says, and counts it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.chaos.proxy import Cut, Delay, Hang, Hole, Proxy, Refuse, through, upstream_of
from tests.support.waiting import eventually


@pytest.fixture
async def heard() -> list[bytes]:
    """What the server behind the proxy was told."""
    return []


@pytest.fixture
async def proxy(heard: list[bytes], tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy before a server on a Unix socket that answers everything in capitals."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            heard.append(data)
            writer.write(data.upper())
        writer.close()

    path = str(tmp_path / "socket")
    server = await asyncio.start_unix_server(serve, path)
    async with Proxy(path) as proxy:
        yield proxy
    server.close()


async def ask(proxy: Proxy, words: bytes, timeout: float = 5.0) -> bytes:
    """Connect, say something, and hear the answer: b"" when the other side hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(words)
        return await asyncio.wait_for(reader.read(4096), timeout)
    finally:
        writer.close()


async def test_without_a_fault_everything_passes(proxy: Proxy) -> None:
    assert await ask(proxy, b"hello") == b"HELLO"
    assert not proxy.stats


async def test_a_cut_of_the_answer_comes_after_the_effect(proxy: Proxy, heard: list[bytes]) -> None:
    await proxy.arm(Cut(match=b"pay"))
    assert await ask(proxy, b"hello") == b"HELLO"
    with pytest.raises(ConnectionResetError):
        await ask(proxy, b"pay me")
    assert heard == [b"hello", b"pay me"]
    assert proxy.stats == {"cut": 1}
    assert await ask(proxy, b"pay again") == b"PAY AGAIN"


async def test_a_fault_that_several_retries_run_into_is_one_fault(proxy: Proxy) -> None:
    for armed in (1, 2):
        await proxy.arm(Cut(match=b"pay", times=None))
        for _ in range(3):
            with pytest.raises(ConnectionResetError):
                await ask(proxy, b"pay me")
        assert (proxy.stats["cut"], proxy.faults["cut"]) == (3 * armed, armed)


async def test_a_cut_of_the_request_leaves_a_part_of_it(proxy: Proxy, heard: list[bytes]) -> None:
    await proxy.arm(Cut("up", after=3))
    with pytest.raises(ConnectionResetError):
        await ask(proxy, b"hello")
    await eventually(lambda: heard)
    assert heard == [b"hel"]


async def test_a_cut_can_let_occasions_pass(proxy: Proxy) -> None:
    await proxy.arm(Cut(skip=2))
    assert await ask(proxy, b"one") == b"ONE"
    assert await ask(proxy, b"two") == b"TWO"
    with pytest.raises(ConnectionResetError):
        await ask(proxy, b"three")


async def test_what_falls_into_a_hole_is_gone_and_so_is_the_connection(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.arm(Hole())
    writer.write(b"hello")
    await eventually(lambda: proxy.stats["hole"])
    await proxy.heal()
    writer.write(b"anybody there")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    writer.close()
    assert await ask(proxy, b"a new one") == b"A NEW ONE"


async def test_a_refused_connection_never_was_one(proxy: Proxy, heard: list[bytes]) -> None:
    await proxy.arm(Refuse())
    with pytest.raises(ConnectionRefusedError):
        await ask(proxy, b"hello")
    await proxy.heal()
    assert await ask(proxy, b"again") == b"AGAIN"
    assert heard == [b"again"]


async def test_a_connection_that_hangs_is_taken_and_never_answered(proxy: Proxy) -> None:
    await proxy.arm(Hang())
    with pytest.raises(TimeoutError):
        await ask(proxy, b"hello", timeout=0.1)
    assert proxy.stats == {"hang": 1}


async def test_a_delay_is_counted_and_nothing_is_lost(proxy: Proxy) -> None:
    await proxy.arm(Delay(0.01))
    assert await ask(proxy, b"hello") == b"HELLO"
    assert proxy.stats["delay"] == 2


def test_urls_lead_through_the_proxy() -> None:
    proxy = Proxy("/nowhere")
    proxy.port = 7
    postgres = "postgresql://me@/db?host=/tmp/run&port=5432"
    assert upstream_of(postgres) == "/tmp/run/.s.PGSQL.5432"
    assert through(postgres, proxy) == "postgresql://me@127.0.0.1:7/db"
    assert upstream_of("unix:///tmp/valkey.sock") == "/tmp/valkey.sock"
    assert through("unix:///tmp/valkey.sock", proxy) == "redis://127.0.0.1:7/0"
    assert upstream_of("http://127.0.0.1:80") == ("127.0.0.1", 80)
    assert through("http://127.0.0.1:80", proxy) == "http://127.0.0.1:7"
