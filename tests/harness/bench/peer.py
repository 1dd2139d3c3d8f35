"""What all peers share, in the process of a peer: the four steps, the commands, the counting.

The steps are the ideal loop's effects with its HTTP transport. They may be repeated, since every
peer promises no more than at least once for what is outside of it.
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import asyncpg
import httpx
from httpx_aiohttp import AiohttpTransport
from redis.asyncio import Redis

from tests.harness.bench.peers import DONE, STREAM

IN_FLIGHT = 64
TABLE = "CREATE TABLE IF NOT EXISTS peer_integrations (id text PRIMARY KEY, config jsonb NOT NULL)"

Command = dict[str, Any]
Create = Callable[[Command], Awaitable[object]]


class Outside:
    """What the steps touch."""

    http: httpx.AsyncClient
    redis: Redis
    pool: Any


async def connect(database: str, redis_url: str, stub: str) -> None:
    """Connect to all of it."""
    Outside.pool = await asyncpg.create_pool(database, min_size=1, max_size=8)
    await Outside.pool.execute(TABLE)
    Outside.redis = Redis.from_url(redis_url)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=128))
    transport = AiohttpTransport(client=session)
    Outside.http = httpx.AsyncClient(transport=transport, base_url=stub, trust_env=False)


# --- the four steps -----------------------------------------------------------------------------


async def evolution(saga_id: str) -> None:
    """Make the instance, and look. The key is the saga's, so that a repetition finds its own."""
    name, token = f"wa-{saga_id}", saga_id
    payload = {"instanceName": name, "integration": "EVOLUTION", "token": token, "qrcode": False}
    answer = await Outside.http.post("/instance/create", headers={"apikey": "bench"}, json=payload)
    assert answer.status_code in (201, 403), answer.text
    seen = await Outside.http.get(f"/instance/connectionState/{name}", headers={"apikey": token})
    assert seen.json()["instance"]["state"]


async def postgres(saga_id: str, config: str) -> None:
    """Insert the row."""
    insert = "INSERT INTO peer_integrations VALUES ($1, $2) ON CONFLICT DO NOTHING"
    await Outside.pool.execute(insert, saga_id, config)


async def cache(saga_id: str, config: str) -> None:
    """Set the routing key."""
    await Outside.redis.set(f"peer:wa-{saga_id}", config, ex=3600)


async def notify(saga_id: str) -> None:
    """Tell the workers."""
    await Outside.redis.publish("peer:added", saga_id)


# --- commands -----------------------------------------------------------------------------------


class Counter:
    """Tells how many are done: the first at once, then in bulk, so that it costs next to nothing.

    A create counts once the peer has answered that it is done, which each of them does only when
    that is recorded for good. Asking its tables or its API instead would take from the peer.
    """

    def __init__(self) -> None:
        self._done = 0
        self._more = asyncio.Event()

    def one_more(self) -> None:
        self._done += 1
        self._more.set()

    async def run(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            await Outside.redis.set(DONE, self._done)
            await asyncio.sleep(0.005)


async def work(create: Create) -> None:
    """Create what is asked for until our input is closed. Raises what a create raises."""
    working = asyncio.create_task(_commands(create))
    closed = asyncio.create_task(_input_closed())
    await asyncio.wait((working, closed), return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()


async def _commands(create: Create) -> None:
    places, counter, last = asyncio.Semaphore(IN_FLIGHT), Counter(), "0"

    async def one(command: Command) -> None:
        async with places:
            await create(command)
        counter.one_more()

    async with asyncio.TaskGroup() as group:
        group.create_task(counter.run())
        print("up", flush=True)
        while True:
            found: Any = await Outside.redis.xread({STREAM: last}, count=500, block=200)
            for _, messages in found.items() if isinstance(found, dict) else found or []:
                for last, fields in messages:  # noqa: B007  # the place to read on from
                    group.create_task(one(json.loads(fields[b"data"])))


async def _input_closed() -> None:
    """Whoever started us holds the other end of our stdin; when it goes, so do we."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def run(main: Callable[[str, str, str], Awaitable[None]]) -> None:
    """The program of a peer: ``main`` gets the addresses of Postgres, Redis and the stub."""

    async def all_of_it() -> None:
        await connect(*sys.argv[1:4])
        await main(*sys.argv[1:4])

    try:
        asyncio.run(all_of_it())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # Threads that a library has left behind hold nothing that is worth waiting for.
    os._exit(0)
