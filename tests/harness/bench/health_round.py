"""One health round in a process of its own: memory, time, and how long its loop stood still.

``python -m tests.harness.bench.health_round DATABASE STUB SERVERS ROUNDS`` prints JSON.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time
from typing import Any, cast

import httpx
from redis.asyncio import Redis

from evosaga.events.database import open_pool
from evosaga.orchestrator.cli.run import settle
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, run_once
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.services import Services
from tests.harness.bench import stub
from tests.harness.bench.list_stub import KEYS


async def measured(database: str, url: str, servers: int, rounds: int) -> dict[str, Any]:
    """Values of the last round, memory in MB above that of the process before the first."""
    pool = await open_pool(database)
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient())
        apis = {
            "default" if n == 0 else f"s{n}": await stack.enter_async_context(
                EvolutionApi(f"{url}/{n}", stub.KEY, timeout=600.0)
            )
            for n in range(servers)
        }
        services = Services(apis, cast(Redis, None), http, KEYS, pool=pool)
        monitor = HealthMonitor(pool, services)
        settle()
        before, told = _memory(), {}
        for _ in range(rounds):
            stills: list[float] = []
            watch = asyncio.create_task(_watch(stills))
            began, cpu = time.monotonic(), time.process_time()
            done = await run_once(monitor)
            stills.sort()
            told = {
                "seconds": time.monotonic() - began,
                "cpu seconds": time.process_time() - cpu,
                "integrations": sum(done.states.values()),
                "connected": done.states.get("connected", 0),
                "asked": done.asked,
                "longest still ms": stills[-1] * 1000,
                "99.9 % still ms": stills[int(len(stills) * 0.999)] * 1000,
                "MB before": before,
                "MB at most": _memory(),
                "aborted": done.aborted,
            }
            watch.cancel()
    await pool.close()
    return told


async def _watch(stills: list[float]) -> None:
    """How late the loop comes, as far as this process was at work: others share the machine."""
    while True:
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(0.005)
        late, busy = time.monotonic() - began - 0.005, time.process_time() - cpu
        stills.append(max(0.0, min(late, busy)))


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    database_, url_, servers_, rounds_ = sys.argv[1:]
    print(json.dumps(asyncio.run(measured(database_, url_, int(servers_), int(rounds_)))))
