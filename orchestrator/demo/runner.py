"""Runs the scenes in order, on servers that it has prepared."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.demo import crash, failures, scenes
from evosaga.orchestrator.demo.assertions import Assertions
from evosaga.orchestrator.demo.environment import Show, Stage, all_alive, workers

if TYPE_CHECKING:
    from evosaga.orchestrator.local.servers import LocalServers

_PACE: Final = 0.4
"""The simulated Evolution's own waits, as a share of real life: a QR code takes it 0.8 s."""


async def play(show: Show, servers: LocalServers) -> int:
    """All scenes in order; how many claims were checked."""
    async with _stage(show, servers) as stage:
        first = await scenes.create(stage)
        await show.pause()
        await scenes.pair(stage, first)
        await show.pause()
        await scenes.duplicate(stage, first)
        await show.pause()
        await failures.at_evolution(stage)
        await show.pause()
        await failures.at_postgres(stage)
        await show.pause()
        await failures.at_cache(stage)
        await show.pause()
        second = await crash.kill_minus_nine(stage)
        await show.pause()
        await scenes.delete(stage, [first, second])
        await show.pause()
        await scenes.empty(stage)
        return stage.claim.held


@contextlib.asynccontextmanager
async def _stage(show: Show, servers: LocalServers) -> AsyncIterator[Stage]:
    from evosaga import migrations
    from evosaga.events import streams
    from evosaga.events.database import open_pool
    from evosaga.orchestrator.local.evolution import SimulatedEvolution

    began = time.monotonic()
    claim = Assertions(show)
    api_key = secrets.token_hex(16)
    log = servers.postgres.folder / "workers.log"
    async with contextlib.AsyncExitStack() as stack:
        evolution = SimulatedEvolution(api_key=api_key, pace=_PACE)
        await stack.enter_async_context(evolution)
        await migrations.migrate(servers.postgres.url)
        environment = _environment(servers, evolution.url, api_key)
        started = stack.enter_context(workers(2, environment, log))
        pool = await open_pool(servers.postgres.url, size=4)
        stack.push_async_callback(pool.close)
        redis = streams.connect(servers.valkey.url)
        stack.push_async_callback(redis.aclose)
        await all_alive(pool, started, log)
        pids = " and ".join(f"{worker.name} ({worker.process.pid})" for worker in started)
        spent = time.monotonic() - began
        show.say(
            f"Postgres {servers.postgres.version}, Valkey {servers.valkey.version}, a simulated "
            f"Evolution 2.3.7 and the workers {pids} are up, after {spent:.1f} s more."
        )
        yield Stage(show, claim, pool, redis, evolution, started)


def _environment(servers: LocalServers, evolution_url: str, api_key: str) -> dict[str, Any]:
    return {
        "EVOSAGA_DATABASE_URL": servers.postgres.url,
        "EVOSAGA_REDIS_URL": servers.valkey.url,
        "EVOSAGA_EVOLUTION_URL": evolution_url,
        "EVOSAGA_EVOLUTION_API_KEY": api_key,
        "EVOSAGA_EVOLUTION_SERVERS": "",
        "EVOSAGA_SECRET_KEY": secrets.token_hex(32),
        "EVOSAGA_QUIET_SECONDS": "1",
        "EVOSAGA_LOG_FORMAT": "json",
    }
