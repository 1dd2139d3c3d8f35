"""Rounds of upkeep in a process of their own: memory, time, and how long its loop stood still.

The longest callback is told twice: by the clock, which counts what else the machine did meanwhile,
and by the processor time of the loop's own thread, which does not.

``python -m tests.harness.bench.upkeep_round WHAT DATABASE REDIS STUB SERVERS ROUNDS`` prints JSON;
WHAT is ``health``, ``orphans`` or ``reconcile``.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from redis.asyncio import Redis

from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.cli.run import settle
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.whatsapp.health import monitor
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor
from evosaga.orchestrator.whatsapp.reconciliation import reconciler
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import EVERYTHING, OFTEN, Reconciler
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.services import Services
from tests.harness.bench import stub
from tests.harness.bench.list_stub import KEYS


@contextlib.asynccontextmanager
async def _services(pool: Pool, redis: str, url: str, servers: int) -> AsyncIterator[Services]:
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient())
        apis = {
            "default" if n == 0 else f"s{n}": await stack.enter_async_context(
                EvolutionApi(f"{url}/{n}", stub.KEY, timeout=600.0)
            )
            for n in range(servers)
        }
        client = await stack.enter_async_context(Redis.from_url(redis))
        yield Services(apis, client, http, KEYS, pool=pool)


async def _round(what: str, pool: Pool, services: Services) -> dict[str, Any]:
    if what == "health":
        done = await monitor.run_once(HealthMonitor(pool, services))
        return {
            "integrations": sum(done.states.values()),
            "connected": done.states.get("connected", 0),
            "asked": done.asked,
            "aborted": done.aborted,
        }
    gate = CommandHandler(pool, EventLog(pool), services, discover())
    keeper = Reconciler(pool, services, gate, ("*{organization_id}*", "*{clinic_id}*"))
    kinds = OFTEN if what == "orphans" else EVERYTHING
    told = await reconciler.run_once(keeper, kinds=kinds)
    return {"drifts": len(told.drifts), "strangers": told.strangers, "aborted": told.aborted}


async def measured(
    what: str, database: str, redis: str, url: str, servers: int, rounds: int
) -> dict[str, Any]:
    """Values of the last round, memory in MB."""
    pool, told = await open_pool(database), {}
    async with _services(pool, redis, url, servers) as services:
        settle()
        before = _memory()
        for _ in range(rounds):
            stills: list[float] = []
            watch = asyncio.create_task(_watch(stills))
            callbacks = _Callbacks()
            began, cpu = time.monotonic(), time.process_time()
            with callbacks.measured():
                done = await _round(what, pool, services)
            stills.sort()
            told = {
                "seconds": time.monotonic() - began,
                "cpu seconds": time.process_time() - cpu,
                "longest still ms": stills[-1] * 1000,
                "99.9 % still ms": stills[int(len(stills) * 0.999)] * 1000,
                "longest callback ms wall": callbacks.wall * 1000,
                "longest callback ms CPU": callbacks.cpu * 1000,
                "which": callbacks.longest,
                "MB before": before,
                "MB at most": _memory(),
                **done,
            }
            watch.cancel()
    await pool.close()
    return told


class _Callbacks:
    """The longest callback of the loop: by the clock, by its thread's CPU, and which that was.

    ``Handle._run`` is where asyncio runs every callback, a step of a task among them.
    """

    def __init__(self) -> None:
        self.wall, self.cpu, self.longest = 0.0, 0.0, ""

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began, cpu = time.monotonic(), time.thread_time()
            run(handle)
            used = time.thread_time() - cpu
            self.wall = max(self.wall, time.monotonic() - began)
            if used > self.cpu:
                # Of a step of a task the task says more than its handle.
                what = getattr(getattr(handle, "_callback", None), "__self__", handle)
                self.cpu, self.longest = used, repr(what)[:300]

        with mock.patch.object(asyncio.Handle, "_run", timed):
            yield


async def _watch(stills: list[float]) -> None:
    """How late the loop comes, as far as this process was at work: others share the machine."""
    while True:
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(0.005)
        late, busy = time.monotonic() - began - 0.005, time.process_time() - cpu
        stills.append(max(0.0, min(late, busy)))


def _memory() -> float:
    """The most that this program has had, in MB.

    Not ``ru_maxrss``: on Linux that survives ``exec``, so it begins with what the caller had.
    """
    status = Path("/proc/self/status").read_text()
    [most] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(most.split()[1]) / 1024


if __name__ == "__main__":
    what_, database_, redis_, url_, servers_, rounds_ = sys.argv[1:]
    print(
        json.dumps(
            asyncio.run(measured(what_, database_, redis_, url_, int(servers_), int(rounds_)))
        )
    )
