"""Where the messages of an instance belong: for routing workers, other people's processes.

It needs a Redis client and an asyncpg pool and nothing else of ours::

    cache = ClinicCache(redis, pool)
    clinic = await cache.get("wa-0197…")          # no database query while the key is there

    async with aclosing(follow(redis, pool)) as changes:
        async for change in changes:               # first everything there is, then what changes
            ...

With ``EVOSAGA_REDIS_PREFIX`` the client must come from ``connect(url, prefix)``, which takes the
URLs of a cluster and of Sentinels as well. Of a cluster, redis-py's own ``RedisCluster`` will do.

The key in Redis expires after an hour, may be evicted or flushed, and anybody may write it. So
``get`` believes what this product wrote, and asks Postgres about everything else; Postgres is the
truth, and Redis only saves the way there.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisClusterException, RedisError

from evosaga.events.database import TRANSIENT, Queryable
from evosaga.events.redis_clients import connect, leave, prefix_of
from evosaga.events.slots import in_cluster
from evosaga.sagas.whatsapp.steps import routing_key
from evosaga.sagas.whatsapp.steps.notify_workers import ADDED, REMOVED
from evosaga.sagas.whatsapp.steps.routing_key import Route

__all__ = ["Change", "ClinicCache", "Route", "RoutingUnavailable", "connect", "follow"]

_REDIS_SECONDS: Final = 1.0
"""How long Redis may take before Postgres is asked instead."""
_FRESH_SECONDS: Final = 10.0
"""What was read from Postgres longer ago than that is not put into Redis any more."""
_PAUSE: Final = 1.0
_AWAY: Final = (RedisError, RedisClusterException, OSError, TimeoutError)


class RoutingUnavailable(Exception):
    """Neither Redis nor Postgres could say where the instance belongs: not "nobody's", try again.

    The operator must bring one of them back.
    """


class ClinicCache:
    """``get``, ``set`` and ``invalidate``, for as many tasks as you like at once.

    ``redis`` may decode its answers or not. ``pool`` is an asyncpg pool or connection that may
    read ``healthcare.integrations``.
    """

    def __init__(self, redis: Redis, pool: Queryable) -> None:
        self._redis = redis
        self._pool = pool
        self._asking: dict[str, asyncio.Task[Route | None]] = {}

    async def get(self, instance_name: str) -> Route | None:
        """Where the instance belongs; None when no integration has it.

        One Redis command on a hit. Raises ``RoutingUnavailable``.
        """
        value, route = await self._look(instance_name)
        if route is not None:
            return route
        # However many ask at once, Postgres is asked once.
        asking = self._asking.get(instance_name)
        if asking is None:
            asking = asyncio.create_task(self._ask(instance_name, value))
            self._asking[instance_name] = asking
            asking.add_done_callback(lambda _: self._asking.pop(instance_name, None))
        return await asyncio.shield(asking)

    async def set(self, route: Route) -> bool:
        """Put a route there for an hour; False when it is out of date, or its integration gone.

        ``get`` does that by itself. Raises ``RedisError``.
        """
        async with self._leaving():
            return await routing_key.put(self._redis, route) == "filled"

    async def invalidate(self, instance_name: str) -> None:
        """Drop what is cached; the next ``get`` asks Postgres. Raises ``RedisError``."""
        async with self._leaving():
            await self._redis.delete(
                routing_key.key(instance_name),
                routing_key.filled_key(instance_name, self._redis),
            )

    @asynccontextmanager
    async def _leaving(self) -> AsyncIterator[None]:
        """Don't use a connection again on which Redis says that it is no master any more."""
        try:
            yield
        except RedisError as error:
            await leave(self._redis, error)
            raise

    async def _look(self, instance_name: str) -> tuple[bytes | None, Route | None]:
        """What is under the key, and the route in it if that can be believed."""
        filled = routing_key.filled_key(instance_name, self._redis)
        keys = (routing_key.key(instance_name), filled)
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                value, seal = map(_bytes, await self._redis.mget(keys))
        except _AWAY:
            return None, None
        if value is None or seal is None:
            return value, None
        return value, read_route(instance_name, value, seal)

    async def _ask(self, instance_name: str, seen: bytes | None) -> Route | None:
        before = time.monotonic()
        try:
            rows = await self._pool.fetch(_NAMED, [instance_name])
        except TRANSIENT as trouble:
            said = "Postgres can't be reached, and Redis has no route that can be believed"
            raise RoutingUnavailable(f"{said} for {instance_name}") from trouble
        route = _route(rows[0]) if rows else None
        try:
            async with asyncio.timeout(_REDIS_SECONDS), self._leaving():
                if route is None and seen is not None:
                    await routing_key.forget(self._redis, instance_name, seen)
                elif route is not None and time.monotonic() - before < _FRESH_SECONDS:
                    await routing_key.put(self._redis, route)
        except _AWAY:
            pass  # the answer is known all the same
        return route


def read_route(instance_name: str, value: bytes, seal: bytes) -> Route | None:
    """The route under the key, if it is what we wrote there and well formed."""
    try:
        integration_id, version, digest = seal.decode().split(" ")
        if digest != routing_key.digest(value):
            return None
        told = json.loads(value)
        return Route(
            integration_id=UUID(integration_id),
            instance_name=instance_name,
            organization_id=str(UUID(told["organization_id"])),
            clinic_id=_text_or_none(told["clinic_id"]),
            name=_text(told["name"]),
            whatsapp_number=_text_or_none(told["whatsapp_number"]),
            version=int(version),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


async def routes(pool: Queryable, names: Iterable[str] | None = None) -> dict[str, Route]:
    """The routes that Postgres knows, all or those of some instances, by instance name."""
    if names is None:
        rows = await pool.fetch(_ALL)
    else:
        rows = await pool.fetch(_NAMED, list(names))
    return {row["instance_name"]: _route(row) for row in rows}


@dataclass(frozen=True, slots=True)
class Change:
    """What a follower must do to hold what Postgres holds."""

    kind: Literal["added", "changed", "removed"]
    route: Route


_News: TypeAlias = "set[str] | None"
"""Names that something was said about; None: something may have been missed, so look at all."""


async def follow(
    redis: Redis, pool: Queryable, *, every: float = 60.0
) -> AsyncGenerator[Change, None]:
    """All integrations as ``added``, then every change, for ever; close it to stop.

    ``wa:instances:added`` and ``removed`` only say where to look: what a follower is told is the
    difference between what it was told before and Postgres. So it is all the same whether a
    message came twice, late, in the wrong order, or not at all. Everything is compared when the
    subscription was made (again) and every ``every`` seconds. Outages are waited out.
    """
    known: dict[str, Route] = {}
    channel, prefix = redis.pubsub(), prefix_of(redis)
    news: _News = None
    compare_at = time.monotonic() + every
    try:
        while True:
            try:
                found = await routes(pool, news) if news is None or news else {}
            except TRANSIENT:
                await asyncio.sleep(_PAUSE)
                continue
            names = known.keys() | found.keys() if news is None else news
            for change in _differences(known, found, names):
                yield change
            names = set()
            try:
                await redis.initialize()
                seconds = max(0.0, compare_at - time.monotonic())
                news = None if await _listen(channel, prefix, seconds, names) else names
            except _AWAY:
                news = names
                await asyncio.sleep(_PAUSE)
                if in_cluster(redis):  # the node that it listened to may be gone for good
                    await channel.aclose()  # type: ignore[no-untyped-call]
                    channel = redis.pubsub()
            if time.monotonic() >= compare_at:
                news, compare_at = None, time.monotonic() + every
    finally:
        await channel.aclose()  # type: ignore[no-untyped-call]


def _differences(
    known: dict[str, Route], found: dict[str, Route], names: Iterable[str]
) -> list[Change]:
    """What has changed about these names; ``known`` is brought up to date."""
    changes: list[Change] = []
    for name in sorted(names):
        before, after = known.pop(name, None), found.get(name)
        if after is not None:
            known[name] = after
        if before is not None and (after is None or after.integration_id != before.integration_id):
            changes.append(Change("removed", before))
            before = None
        if after is not None and before is None:
            changes.append(Change("added", after))
        elif after is not None and before is not None and after.value() != before.value():
            changes.append(Change("changed", after))
    return changes


async def _listen(channel: Any, prefix: str, seconds: float, names: set[str]) -> bool:
    """Wait for news, at most so long, then take all that has come; True: some may be missing."""
    missed = False
    if not channel.subscribed:
        await channel.subscribe(prefix + ADDED, prefix + REMOVED)
    message = await channel.get_message(timeout=seconds)
    while message is not None:
        # The client subscribes again by itself when its connection broke, and the answer to
        # that is the only sign that messages may have been missed.
        missed = missed or message["type"] == "subscribe"
        names |= _names(message)
        message = await channel.get_message(timeout=0)
    return missed


def _names(message: dict[str, Any]) -> set[str]:
    """The instance that a message is about; none when nobody can tell."""
    try:
        name = json.loads(message["data"])["instance_name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()
    return {name} if isinstance(name, str) else set()


def _route(row: asyncpg.Record) -> Route:
    return Route(
        integration_id=row["id"],
        instance_name=row["instance_name"],
        organization_id=str(row["organization_id"]),
        clinic_id=row["clinic_id"],
        name=row["name"] or row["instance_name"],
        whatsapp_number=row["whatsapp_number"],
        version=row["version"],
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


_SELECT: Final = """
SELECT DISTINCT ON (config ->> 'instance_name')
       id, organization_id, config ->> 'instance_name' AS instance_name,
       config ->> 'clinic_id' AS clinic_id, config ->> 'name' AS name, whatsapp_number,
       coalesce((extract(epoch FROM updated_at) * 1000000)::bigint, 0) AS version
FROM healthcare.integrations
WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled
  AND organization_id IS NOT NULL AND config ->> 'instance_name' {}
ORDER BY config ->> 'instance_name', updated_at DESC NULLS LAST, id
"""
_NAMED: Final = _SELECT.format("= ANY($1)")
_ALL: Final = _SELECT.format("IS NOT NULL")
