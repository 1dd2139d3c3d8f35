"""The ideal loop: what a good engineer writes by hand for exactly these four steps, and no more.

The same packages, the same HTTP transport, the same calls to Evolution and Redis, the same
durable intents and outcomes, group commit over everything in flight. But: no definitions, no
decider, no retries, no leases, no recovery, no relay, no other saga, no answer to any failure. It
is the ceiling that the engine is measured against.
"""

import asyncio
import json
import os
import sys
import uuid
from typing import Any

import aiohttp
import asyncpg
import httpx
from httpx_aiohttp import AiohttpTransport
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.sagas.whatsapp.evolution.session_transport import SessionTransport

IN_FLIGHT = 64
SCHEMA = """
CREATE TABLE IF NOT EXISTS ideal_sagas (saga_id uuid PRIMARY KEY, status text NOT NULL,
    sequence int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS ideal_events (saga_id uuid, sequence int, type text NOT NULL,
    data jsonb NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (saga_id, sequence));
CREATE TABLE IF NOT EXISTS ideal_integrations (id uuid PRIMARY KEY, organization_id uuid UNIQUE,
    config jsonb NOT NULL);
"""

Write = tuple[uuid.UUID, int, str, list[tuple[str, str]], tuple[uuid.UUID, str] | None]


class Writer:
    """Group commit: what arrives while a commit is on its way goes into the next one."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    def append(self, write: Write) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((write, done))
        self._arrived.set()
        return done

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            await self._commit([write for write, _ in batch])
            for _, done in batch:
                done.set_result(None)

    async def _commit(self, writes: list[Write]) -> None:
        events = [
            (saga_id, first + n, type_, data)
            for saga_id, first, _, told, _ in writes
            for n, (type_, data) in enumerate(told)
        ]
        rows = [(row[0], row[1], saga_id) for saga_id, *_, row in writes if row]
        new = [(w[0], w[2], w[1] + len(w[3])) for w in writes]
        async with self._connection.transaction():
            await self._connection.execute(
                "INSERT INTO ideal_sagas (saga_id, status, sequence) "
                "SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[]) "
                "ON CONFLICT (saga_id) DO UPDATE SET status = excluded.status, "
                "sequence = excluded.sequence, updated_at = now()",
                *map(list, zip(*new, strict=True)),
            )
            await self._connection.execute(
                "INSERT INTO ideal_events (saga_id, sequence, type, data) "
                "SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::jsonb[])",
                *map(list, zip(*events, strict=True)),
            )
            if rows:
                await self._connection.execute(
                    "INSERT INTO ideal_integrations (organization_id, config, id) "
                    "SELECT * FROM unnest($1::uuid[], $2::jsonb[], $3::uuid[])",
                    *map(list, zip(*rows, strict=True)),
                )


class Evolution:
    """Calls to the server: with httpx's client on the transport for aiohttp, as one writes it.

    ``bare``: on the very transport that our client of Evolution has, without httpx's client.
    """

    def __init__(self, url: str, *, bare: bool) -> None:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=128))
        self._url, self._bare = url, SessionTransport(session) if bare else None
        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(client=session), trust_env=False
        )

    async def __call__(self, method: str, path: str, key: str, body: Any = None) -> Any:
        url, headers = self._url + path, {"apikey": key}
        if self._bare is not None:
            request = httpx.Request(method, url, headers=headers, json=body)
            answer = await self._bare.handle_async_request(request)
        else:
            answer = await self._client.request(method, url, headers=headers, json=body)
        said = await answer.aread()
        assert answer.status_code in (200, 201), said
        return json.loads(said)


async def create(
    saga_id: uuid.UUID, data: Any, evolution: Evolution, redis: Redis, writer: Writer
) -> None:
    """One saga, its beginning committed already."""
    name, token = f"wa-{saga_id}", uuid.uuid4().hex
    wanted = {"instanceName": name, "integration": "EVOLUTION", "token": token, "qrcode": False}
    made = await evolution("POST", "/instance/create", "bench", wanted)
    assert made["hash"] == token
    seen = await evolution("GET", f"/instance/connectionState/{name}", token)
    assert seen["instance"]["state"]
    organization = uuid.UUID(data["organization_id"])
    config = json.dumps({"instance_name": name, "clinic_id": data["clinic_id"]})
    done = [("step.succeeded", "{}"), ("step.started", "{}")]
    both = [*done, *done]
    await writer.append((saga_id, 2, "running", both, (organization, config)))
    key = json.dumps({"clinic_id": data["clinic_id"], "organization_id": str(organization)})
    await redis.set(f"ideal:{name}", key, ex=3600)
    await writer.append((saga_id, 6, "running", done, None))
    await redis.publish("ideal:added", json.dumps({"instance_name": name}))
    over = [("step.succeeded", "{}"), ("saga.completed", "{}")]
    await writer.append((saga_id, 8, "completed", over, None))


def _loudly(task: "asyncio.Task[None]") -> None:
    if task.exception():
        print(repr(task.exception()), file=sys.stderr, flush=True)
        os._exit(1)


async def main(database: str, redis_url: str, evolution: str, bare: str = "") -> None:
    """Read commands for ever."""
    connection = await asyncpg.connect(database)
    await connection.execute(SCHEMA)
    # Reading blocks, and what shares a connection with a blocked read waits for it.
    redis, reader = streams.connect(redis_url), streams.connect(redis_url)
    await redis.xgroup_create("ideal:commands", "ideal", id="0", mkstream=True)
    server = Evolution(evolution, bare=bool(bare))
    writer = Writer(connection)
    writing = asyncio.create_task(writer.run())
    places = asyncio.Semaphore(IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()

    async def one(saga_id: uuid.UUID, data: Any) -> None:
        try:
            await create(saga_id, data, server, redis, writer)
        finally:
            places.release()

    print("up", flush=True)
    while not writing.done():
        found: Any = await reader.xreadgroup(
            "ideal", "one", {"ideal:commands": ">"}, count=IN_FLIGHT, block=200
        )
        for _, messages in found or []:
            commands = [(id_, json.loads(fields[b"data"])) for id_, fields in messages]
            begun = []
            for _, command in commands:
                beginning = [("saga.started", json.dumps(command["data"])), ("step.started", "{}")]
                saga_id = uuid.UUID(command["id"])
                begun.append(writer.append((saga_id, 0, "running", beginning, None)))
            await asyncio.gather(*begun)
            await redis.xack("ideal:commands", "ideal", *(id_ for id_, _ in commands))
            for _, command in commands:
                await places.acquire()
                task = asyncio.create_task(one(uuid.UUID(command["id"]), command["data"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(_loudly)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
