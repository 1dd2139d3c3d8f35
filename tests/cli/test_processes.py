"""``evosaga worker --processes N``: as many workers, restarted when they die, and no orphans."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.cli.processes import Processes, _Child
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.os_support import children_of
from evosaga.orchestrator.queries.sagas import living_workers
from tests.support.commandline import Evosaga, commandline
from tests.support.waiting import eventually


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def start(evosaga: Evosaga, pool: Pool, number: int) -> asyncio.subprocess.Process:
    process = await evosaga.start("worker", "--processes", str(number))

    async def up() -> bool:
        assert process.returncode is None, await process.communicate()
        return await living_workers(pool) == number

    await eventually(up, 60, message="the workers to be up")
    return process


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def all_free(first: int) -> bool:
    """Whether it and the next two are."""
    try:
        for port in range(first, first + 3):
            with socket.socket() as one:
                one.bind(("127.0.0.1", port))
    except (OSError, OverflowError):
        return False
    return True


@pytest.fixture
async def three(evosaga: Evosaga, pool: Pool) -> AsyncIterator[asyncio.subprocess.Process]:
    port = next(filter(all_free, iter(free_port, None)))
    evosaga = evosaga.having(metrics_port=str(port))
    process = await start(evosaga, pool, 3)
    process.port = port  # type: ignore[attr-defined]
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_each_serves_metrics_one_that_dies_comes_again_and_all_stop_together(
    three: asyncio.subprocess.Process, pool: Pool
) -> None:
    children = children_of(three.pid)
    assert len(children) == 3
    async with httpx.AsyncClient(trust_env=False) as http:
        for place in range(3):
            url = f"http://127.0.0.1:{three.port + place}/metrics"  # type: ignore[attr-defined]

            # A worker is counted before it listens.
            async def serves(url: str = url) -> bool:
                with contextlib.suppress(httpx.ConnectError):
                    return "evosaga_driving" in (await http.get(url, timeout=20)).text
                return False

            await eventually(serves, 20, message=f"{url} to answer")
    os.kill(children[0], signal.SIGKILL)
    await eventually(
        lambda: len(set(children_of(three.pid)) - set(children)) == 1, 20, message="another one"
    )
    await eventually(lambda: is_up(pool, 3), 60, message="it to be up")
    three.terminate()
    out, err = await asyncio.wait_for(three.communicate(), 60)
    assert three.returncode == 0, (out, err)
    assert await living_workers(pool) == 0, "each has left"
    assert "process died" in (out + err).decode()


async def is_up(pool: Pool, number: int) -> bool:
    return await living_workers(pool) >= number


async def test_when_the_parent_is_killed_no_worker_is_left(evosaga: Evosaga, pool: Pool) -> None:
    process = await start(evosaga, pool, 2)
    children = children_of(process.pid)
    process.kill()
    await process.wait()
    await eventually(lambda: not alive(children), 60, message="the children to end")


@pytest.mark.parametrize("number", ["0", "257", "two", "-1"])
async def test_a_number_that_is_none_is_wrong_usage(evosaga: Evosaga, number: str) -> None:
    ran = await evosaga("worker", f"--processes={number}")
    assert ran.code == 2
    assert "1 to 256" in ran.err


async def test_ports_that_do_not_exist_are_refused_before_anything_starts(
    evosaga: Evosaga,
) -> None:
    ran = await evosaga.having(metrics_port="65535")("worker", "--processes=2")
    assert ran.code == 2
    assert "EVOSAGA_METRICS_PORT" in ran.err


def test_one_that_dies_at_once_again_and_again_is_started_after_growing_pauses() -> None:
    child, pauses = _Child(0), []
    for _ in range(8):
        child.started_at = 100.0
        child.ended(101.0)
        pauses.append(child.pause)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    child.started_at = 100.0
    child.ended(500.0)
    assert child.pause == 0.5, "it was well for a while"


def test_a_signal_while_one_is_forked_reaches_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be taken by the handler that the child has of its parent, and be lost."""
    fork = os.fork

    def signalled_meanwhile() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        if pid := fork():
            return pid
        time.sleep(0.5)  # so that what it is told comes before it is ready for it
        return 0

    monkeypatch.setattr(os, "fork", signalled_meanwhile)

    def run(_: int) -> int:
        time.sleep(20)
        return 3

    before = time.monotonic()
    assert Processes(1, run).supervise() == 0
    assert time.monotonic() - before < 10


def test_what_breaks_in_a_child_is_logged(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor = Processes(1, lambda _: 1 // 0)

    def ended(child: _Child, _now: float) -> None:
        child.pid, supervisor._signals = None, 1

    monkeypatch.setattr(_Child, "ended", ended)
    assert supervisor.supervise() == 0
    out, err = capfd.readouterr()
    assert "ZeroDivisionError" in out + err


@pytest.mark.parametrize(("lived", "ended"), [(0.0, True), (3600.0, False)])
def test_one_that_refuses_to_start_ends_the_others_only_while_none_has_run(
    lived: float, ended: bool
) -> None:
    supervisor = Processes(2, lambda _: 0)
    refused = _Child(0, os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", "exit 2"), time.monotonic())
    well = _Child(1, None, 0.0)
    supervisor._children = [refused, well]
    well.pid = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
    well.started_at = time.monotonic() - lived
    try:
        while refused.pid is not None:
            supervisor._reap()
            time.sleep(0.01)
        assert bool(supervisor._signals) is ended
    finally:
        os.kill(well.pid, signal.SIGKILL)
        os.waitpid(well.pid, 0)
