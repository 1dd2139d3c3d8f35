"""The same four steps on DBOS Transact, for ``make bench ARGS="--peer dbos"``.

Not a dependency: install ``dbos`` into the environment first. A workflow a create, a step an
outside system, 64 in flight, its system tables in the same Postgres; commands from a stream.
"""

import asyncio
import json
import sys
import uuid
from typing import Any

import aiohttp
import asyncpg
import httpx
from dbos import DBOS
from httpx_aiohttp import AiohttpTransport
from redis.asyncio import Redis

IN_FLIGHT = 64
STREAM = "dbos:commands"
TABLE = "CREATE TABLE IF NOT EXISTS dbos_integrations (id text PRIMARY KEY, config jsonb NOT NULL)"


class Outside:
    """What the steps touch."""

    http: httpx.AsyncClient
    redis: Redis
    pool: Any


@DBOS.step()
async def evolution(saga_id: str) -> None:
    """Make the instance, and look."""
    name, token = f"wa-{saga_id}", uuid.uuid4().hex
    payload = {"instanceName": name, "integration": "EVOLUTION", "token": token, "qrcode": False}
    answer = await Outside.http.post("/instance/create", headers={"apikey": "bench"}, json=payload)
    assert answer.status_code == 201
    seen = await Outside.http.get(f"/instance/connectionState/{name}", headers={"apikey": token})
    assert seen.json()["instance"]["state"]


@DBOS.step()
async def postgres(saga_id: str, config: str) -> None:
    """Insert the row."""
    insert = "INSERT INTO dbos_integrations VALUES ($1, $2) ON CONFLICT DO NOTHING"
    await Outside.pool.execute(insert, saga_id, config)


@DBOS.step()
async def cache(saga_id: str, config: str) -> None:
    """Set the routing key."""
    await Outside.redis.set(f"dbos:wa-{saga_id}", config, ex=3600)


@DBOS.step()
async def notify(saga_id: str) -> None:
    """Tell the workers."""
    await Outside.redis.publish("dbos:added", saga_id)


@DBOS.workflow()
async def create(saga_id: str, data: dict[str, str]) -> None:
    """One create."""
    config = json.dumps(data)
    await evolution(saga_id)
    await postgres(saga_id, config)
    await cache(saga_id, config)
    await notify(saga_id)


async def main(database: str, redis_url: str, stub: str) -> None:
    """Read commands for ever."""
    Outside.pool = await asyncpg.create_pool(database, min_size=1, max_size=8)
    await Outside.pool.execute(TABLE)
    Outside.redis = Redis.from_url(redis_url)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=128))
    transport = AiohttpTransport(client=session)
    Outside.http = httpx.AsyncClient(transport=transport, base_url=stub, trust_env=False)
    DBOS(config={"name": "bench", "system_database_url": database, "log_level": "ERROR"})
    DBOS.launch()
    places = asyncio.Semaphore(IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()

    async def one(command: Any) -> None:
        async with places:
            await create(command["id"], command["data"])

    print("up", flush=True)
    last = "0"
    while True:
        for _, messages in await _read(last):
            for last, fields in messages:  # noqa: B007  # the place to read on from
                task = asyncio.create_task(one(json.loads(fields[b"data"])))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def _read(last: str) -> list[Any]:
    found: Any = await Outside.redis.xread({STREAM: last}, count=500, block=200)
    return list(found.items() if isinstance(found, dict) else found or [])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
