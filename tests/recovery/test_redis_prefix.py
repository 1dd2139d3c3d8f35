"""Two databases on one Redis, each behind a prefix of its own."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import open_pool
from evosaga.events.key_prefix import prefixed
from evosaga.events.redis_clients import connect
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.maintenance import redis_checks
from evosaga.orchestrator.routing import ClinicCache, follow
from evosaga.orchestrator.whatsapp.reconciliation.observe import keys_of
from evosaga.orchestrator.whatsapp.redis_use import REDIS_USE
from tests.support.databases import Databases
from tests.support.driving import create, delete, outcome, publish
from tests.support.waiting import eventually


async def test_two_databases_share_a_redis_and_neither_sees_anything_of_the_other(
    settings: Settings, databases: Databases, redis: Redis
) -> None:
    names = [await databases.take() for _ in range(2)]
    both = [
        settings.model_copy(
            update={"database_url": databases.url(name), "redis_prefix": prefix, "health_every": 0}
        )
        for name, prefix in zip(names, ("one:", "two:"), strict=True)
    ]
    clients = [connect(str(one.redis_url), one.redis_prefix) for one in both]
    pools = [await open_pool(str(one.database_url)) for one in both]
    async with running_worker(both[0]) as first, running_worker(both[1]) as second:
        for client, pool in zip(clients, pools, strict=True):
            await redis_checks.require(client)
            for _ in range(2):
                assert (await outcome(pool, await publish(client, create()))).status == "completed"
            last = await outcome(pool, await publish(client, create()))
            gone = await outcome(pool, await publish(client, delete(str(last.instance_name))))
            assert gone.status == "completed"
            assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == 4
            assert len([key async for page in keys_of(client) for key in page]) == 2
        assert first.reader.healthy
        assert second.reader.healthy

        async def all_told() -> bool:
            return all([await told(*one) for one in zip(clients, pools, strict=True)])

        await eventually(all_told, 20, message="each to have told its own events")
    keys = {key.split(b":")[0] async for key in redis.scan_iter()}
    assert keys == {b"one", b"two"}
    for client, pool, name in zip(clients, pools, names, strict=True):
        await client.aclose()
        await pool.close()
        await databases.give_back(name)


async def told(client: Redis, pool: Any) -> bool:
    found: Any = await client.xrange(streams.EVENTS)
    ids = {json.loads(fields[b"data"])["id"] for _, fields in found}
    rows = await pool.fetch("SELECT saga_id, sequence FROM evosaga.saga_events")
    return ids == {f"{row['saga_id']}:{row['sequence']}" for row in rows}


async def test_routing_workers_find_and_follow_what_has_a_prefix(
    settings: Settings, redis: Redis, pool: Any
) -> None:
    behind = settings.model_copy(update={"redis_prefix": "staging:"})
    client = connect(str(behind.redis_url), "staging:")
    async with running_worker(behind), aclosing(follow(client, pool, every=3600)) as changes:
        coming = asyncio.ensure_future(anext(changes))
        await eventually(lambda: redis.pubsub_numsub("staging:wa:instances:added"))
        saga = await outcome(pool, await publish(client, create()))
        change = await asyncio.wait_for(coming, 20)
        assert (change.kind, change.route.instance_name) == ("added", saga.instance_name)
        route = await ClinicCache(client, pool).get(str(saga.instance_name))
        assert route is not None
        assert await redis.exists(f"staging:whatsapp:instance:{saga.instance_name}")
    await client.aclose()


async def test_rights_are_named_with_the_prefix(own_valkey: LocalServer, own_redis: Redis) -> None:
    rules = ["ACL", "SETUSER", "default", "resetkeys", "resetchannels"]
    await own_redis.execute_command(*rules, *redis_checks.rights(REDIS_USE, "p.").split(), "+@all")  # type: ignore[no-untyped-call]
    async with connect(own_valkey.url, "p.") as behind:
        await redis_checks.require(behind, use=REDIS_USE)
    async with connect(own_valkey.url, "q.") as other:
        with pytest.raises(redis_checks.RedisUnfit, match=r"~q\.evosaga:\*"):
            await redis_checks.require(other, use=REDIS_USE)


def test_a_command_whose_keys_nobody_knows_is_not_sent_without_a_prefix() -> None:
    assert prefixed("", ("LPUSH", "a", "b")) == ("LPUSH", "a", "b")
    assert prefixed("p:", ("EVAL", "return 1", 2, "a", b"b", "c"))[3:] == ("p:a", b"p:b", "c")
    with pytest.raises(ValueError, match="LPUSH"):
        prefixed("p:", ("LPUSH", "a", "b"))


@pytest.mark.parametrize("prefix", ["a b", "a*", "é", "x" * 65])
def test_a_prefix_that_is_a_pattern_or_no_word_is_refused(prefix: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_PREFIX"):
        load_settings(_env_file=None, redis_prefix=prefix)
