"""How long one answer of the API takes, on a connection that is kept open, one after the other."""

import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from tests.harness.bench import stub
from tests.harness.bench.measures import Result, Say, percentile
from tests.harness.bench.rig import (
    SECRET,
    Process,
    Rig,
    Slow,
    creates,
    end,
    first_line,
    spawn,
    until,
)

_KEY: Final = "k" * 40
_HEADERS: Final = {"Authorization": f"Bearer {_KEY}"}


async def latency(rig: Rig, count: int, say: Say) -> list[Result]:
    """(j): `/healthz`, one saga, and a command, each as many times a bare uvicorn's answer.

    ``evosaga api``, so without a worker whose work would be measured as well. In turns, so that
    all meet the same machine.
    """
    database = await rig.fresh()
    api, url = await _api(rig, database.url)
    bare = spawn(["-m", "tests.harness.bench.bare_http"], rig.folder / "bare-http.log")
    rig.processes.append(bare)
    bare_url = f"http://127.0.0.1:{await first_line(bare)}"
    try:
        async with aiohttp.ClientSession() as session:
            commands = iter(creates(count + 1))
            first = next(commands)
            async with session.post(f"{url}/commands", json=first, headers=_HEADERS) as answer:
                assert answer.status == 202, await answer.text()

            async def get(where: str) -> None:
                async with session.get(where, headers=_HEADERS) as answer:
                    await answer.read()
                    assert answer.status == 200, where

            async def command() -> None:
                path, body = f"{url}/commands", next(commands)
                async with session.post(path, json=body, headers=_HEADERS) as answer:
                    await answer.read()
                    assert answer.status == 202

            asked: dict[str, Callable[[], Awaitable[None]]] = {
                "bare": lambda: get(bare_url),
                "GET /healthz": lambda: get(f"{url}/healthz"),
                "GET /sagas/{id}": lambda: get(f"{url}/sagas/{first['id']}"),
                "POST /commands": command,
            }
            took = await _in_turns(asked, count)
    finally:
        end(api)
        end(bare)
        await database.connection.close()
    return _told(took, say)


async def _api(rig: Rig, database: str) -> tuple[Process, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = rig.folder / "api.log"
    process = spawn(
        ["-m", "evosaga.orchestrator.cli", "api", "--port", str(port)],
        log,
        EVOSAGA_DATABASE_URL=database,
        EVOSAGA_REDIS_URL=rig.redis_url,
        EVOSAGA_EVOLUTION_URL=rig.evolution,
        EVOSAGA_EVOLUTION_API_KEY=stub.KEY,
        EVOSAGA_SECRET_KEY=SECRET,
        EVOSAGA_API_KEYS=f"bench:{_KEY}",
    )
    rig.processes.append(process)
    up = "the API to start"
    await until(lambda: b"http is up" in log.read_bytes() or process.poll() is not None, up)
    if process.poll() is not None:
        raise Slow(f"the API ended before it was up: {log.read_text()[-2000:]}")
    return process, f"http://127.0.0.1:{port}"


async def _in_turns(
    asked: dict[str, Callable[[], Awaitable[None]]], count: int
) -> dict[str, list[float]]:
    """Milliseconds of every answer but the first ones."""
    took: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(count):
        for name, ask in asked.items():
            began = time.perf_counter()
            await ask()
            took[name].append((time.perf_counter() - began) * 1000)
    return {name: times[count // 10 :] for name, times in took.items()}


def _told(took: dict[str, list[float]], say: Say) -> list[Result]:
    bare: Any = percentile(took["bare"], 0.5)
    results = []
    for name, times in took.items():
        if name == "bare":
            continue
        p50 = percentile(times, 0.5)
        values = {"p50": p50, "p99": percentile(times, 0.99), "bare p50": bare}
        ratio, most = p50 / bare, _MOST[name]
        target = f"p50 <= {most} times a bare uvicorn's"
        results.append(Result("j", name, values, "ms", ratio, target, ratio <= most))
        say(f"{name}: p50 {p50:.2f} ms, bare {bare:.2f} ms")
    return results


_MOST: Final = {"GET /healthz": 4, "GET /sagas/{id}": 8, "POST /commands": 20}
