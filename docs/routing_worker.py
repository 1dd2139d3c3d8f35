"""A routing worker, to begin with: python routing_worker.py REDIS_URL DATABASE_URL [PREFIX]

The prefix is that of EVOSAGA_REDIS_PREFIX, if that is set.

It holds the set of instances that exist, whatever it misses, and hands every message to the clinic
it belongs to. The messages are on the stream ``wa:events``, with the clinic beside them; any
language reads them with XREADGROUP. Of evosaga it uses ``evosaga.routing`` alone.
"""
# ruff: noqa: T201

import asyncio
import contextlib
import json
import os
import socket
import sys
from typing import Any

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from evosaga.routing import ClinicCache, Route, RoutingUnavailable, connect, follow

STREAM, GROUP = "wa:events", "routing"
ME = f"{socket.gethostname()}-{os.getpid()}"
ABANDONED_MS = 30_000  # what a worker took and did not finish for so long, another takes over

instances: dict[str, Route] = {}


async def handle(clinic: Route, event: dict[str, Any]) -> None:
    """Yours. It may see an event twice: event["id"] tells."""
    line = {"clinic": clinic.name, "event": event["type"], "id": event["id"]}
    print(json.dumps(line, ensure_ascii=False), flush=True)


async def hold_the_instances(redis: Redis, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    async with contextlib.aclosing(follow(redis, pool)) as changes:
        async for change in changes:
            name = change.route.instance_name
            if change.kind == "removed":
                instances.pop(name, None)
            else:
                instances[name] = change.route
            print(json.dumps({change.kind: name, "instances": len(instances)}), flush=True)


async def take_messages(redis: Redis, clinics: ClinicCache) -> None:
    while True:
        try:
            for id_, fields in await some_messages(redis):
                clinic = await clinics.get(fields["instance_name"])  # Redis alone, as a rule
                if clinic is not None:  # else it was deleted meanwhile
                    await handle(clinic, json.loads(fields["data"]))
                await redis.xack(STREAM, GROUP, id_)  # now, and not before
        except (RedisError, RoutingUnavailable) as trouble:
            print(f"waiting: {trouble}", file=sys.stderr, flush=True)
            await asyncio.sleep(1)  # what was not acknowledged comes again


async def some_messages(redis: Redis) -> list[tuple[str, dict[str, str]]]:
    """What others have abandoned, else what is new."""
    try:
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except ResponseError as error:  # it is there, as it should be
        if "BUSYGROUP" not in str(error):
            raise
    claimed: Any = await redis.xautoclaim(STREAM, GROUP, ME, ABANDONED_MS, count=10)
    if any(fields for _, fields in claimed[1]):
        return [(id_.decode(), text(fields)) for id_, fields in claimed[1] if fields]
    read: Any = await redis.xreadgroup(GROUP, ME, {STREAM: ">"}, count=10, block=1000)
    return [(id_.decode(), text(fields)) for id_, fields in read[0][1]] if read else []


def text(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


async def main(redis_url: str, database_url: str, prefix: str = "") -> None:
    redis = connect(redis_url, prefix)  # one Redis, a cluster, or what Sentinels name
    reader = connect(redis_url, prefix)  # reading waits for messages, and holds up nobody else
    pool = await asyncpg.create_pool(database_url, min_size=0, max_size=2)
    async with redis, reader, pool, asyncio.TaskGroup() as group:
        group.create_task(hold_the_instances(redis, pool))
        group.create_task(take_messages(reader, ClinicCache(redis, pool)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
