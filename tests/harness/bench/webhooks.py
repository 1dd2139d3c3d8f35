"""``python -m tests.harness.bench.webhooks``: how long a webhook waits for its answer; what a hit
costs.

A real `evosaga serve` in a process of its own, real Postgres and Valkey, the simulated Evolution.
The storm is open-loop: deliveries go out on time, whether the ones before are answered or not.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.servers import local_servers
from evosaga.orchestrator.routing import ClinicCache
from evosaga.sagas.whatsapp.ownership import KeyRing

ROOT = Path(__file__).parents[3]
KEY, SECRET = "the-global-key", "a-secret-key-of-thirty-two-bytes-or-more"
DELIVERIES, SECONDS, HITS = 600, 9.0, 100_000


def say(text: str) -> None:
    print(text, flush=True)


async def storm(session: aiohttp.ClientSession, name: str, states: tuple[str, ...]) -> list[float]:
    """600 deliveries in 9 s; the seconds each waited."""
    ring = KeyRing([SECRET])
    token = ring.webhook_token(uuid.UUID(name.removeprefix("wa-")), ring.current)
    begin = time.perf_counter()

    async def one(n: int) -> float:
        await asyncio.sleep(max(0.0, begin + n * SECONDS / DELIVERIES - time.perf_counter()))
        body = {
            "event": "connection.update",
            "instance": name,
            "data": {"instance": name, "state": states[n % len(states)], "statusReason": 200},
            "date_time": f"2031-01-01T00:{n // 60:02}:{n % 60:02}.{time.time_ns() % 1000:03}Z",
        }
        before = time.perf_counter()
        path = f"/webhooks/evolution/{name}"
        async with session.post(path, json=body, headers={"X-Webhook-Token": token}) as answer:
            assert answer.status == 200, await answer.text()
        return time.perf_counter() - before

    return await asyncio.gather(*(one(n) for n in range(DELIVERIES)))


def told(label: str, waits: list[float]) -> None:
    cuts = statistics.quantiles([1000 * wait for wait in waits], n=100)
    say(
        f"  {label:<34} p50 {cuts[49]:6.1f} ms   p99 {cuts[98]:6.1f} ms   "
        f"max {1000 * max(waits):6.1f} ms"
    )


async def hits(redis: Redis, pool: Any, name: str) -> None:
    """100,000 reads of a cached route, counting what Postgres is asked."""
    queries = 0

    class Counting:
        async def fetch(self, query: str, *values: Any) -> Any:
            nonlocal queries
            queries += 1
            return await pool.fetch(query, *values)

    cache = ClinicCache(redis, Counting())  # type: ignore[arg-type]
    begin = time.perf_counter()
    for _ in range(HITS // 100):
        found = await asyncio.gather(*(cache.get(name) for _ in range(100)))
        assert all(found)
    rate = HITS / (time.perf_counter() - begin)
    say(f"  {HITS:,} cache hits: {queries} queries, {rate:,.0f} hits/s")


async def measure(postgres: str, valkey: str, folder: Path) -> None:
    await migrations.migrate(postgres)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with SimulatedEvolution(api_key=KEY) as evolution:
        environment = os.environ | {
            "EVOSAGA_DATABASE_URL": postgres,
            "EVOSAGA_REDIS_URL": valkey,
            "EVOSAGA_EVOLUTION_URL": evolution.url,
            "EVOSAGA_EVOLUTION_API_KEY": KEY,
            "EVOSAGA_SECRET_KEY": SECRET,
            "EVOSAGA_API_KEYS": f"bench:{'k' * 40}",
            "EVOSAGA_PUBLIC_URL": url,
            "PYTHONPATH": str(ROOT),
        }
        serve = start(url.rpartition(":")[2], folder, environment)
        pool = await asyncpg.create_pool(postgres, min_size=0)
        redis = Redis.from_url(valkey, max_connections=128)
        try:
            async with aiohttp.ClientSession(url) as session:
                await up(session)
                name = await integration(redis, pool)
                looked = len(evolution.journal.entries)
                told("600 x connecting in 9 s", await storm(session, name, ("connecting",)))
                told("600 x open, close in 9 s", await storm(session, name, ("open", "close")))
                stored = await pool.fetchval("SELECT count(*) FROM evosaga.webhooks")
                asked = len(evolution.journal.entries) - looked
                say(f"  stored: {stored}; requests to Evolution: {asked}")
            await hits(redis, pool, name)
        finally:
            serve.terminate()
            serve.wait(30)
            await redis.aclose()
            await pool.close()


def start(port: str, folder: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with (folder / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "evosaga.orchestrator.cli", "serve", "--port", port]
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=log)


async def up(session: aiohttp.ClientSession) -> None:
    for _ in range(600):
        try:
            async with session.get("/healthz"):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)
    raise SystemExit("serve did not start")


async def integration(redis: Redis, pool: Any) -> str:
    command = {
        "id": str(uuid.uuid4()),
        "type": "integration.create",
        "data": {
            "organization_id": str(uuid.uuid4()),
            "clinic_id": str(uuid.uuid4()),
            "name": "Clínica Sol",
        },
    }
    await redis.xadd("evosaga:commands", {"data": json.dumps(command)})
    query = "SELECT true FROM evosaga.sagas WHERE saga_id = $1 AND status = 'completed'"
    while not await pool.fetchval(query, uuid.UUID(str(command["id"]))):
        await asyncio.sleep(0.05)
    return f"wa-{command['id']}"


def main() -> None:
    with local_servers() as servers, tempfile.TemporaryDirectory() as folder:
        say("webhooks and routing:")
        asyncio.run(measure(servers.postgres.url, servers.valkey.url, Path(folder)))


if __name__ == "__main__":
    main()
