"""A Redis Cluster: every script in one slot, and nothing lost when a master fails.

Names that are promises stay what they are; what is used beside a key is in its slot.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import ClusterCrossSlotError
from redis.exceptions import ConnectionError as RedisConnectionError

from evosaga.events import (
    dead_letters,
    follow_up_position,
    redis_clients,
    relay_position,
    retention,
    streams,
)
from evosaga.events.database import Pool
from evosaga.events.relay import Relay
from evosaga.events.republish import republish_between, republish_from
from evosaga.events.slots import beside
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.maintenance import redis_checks
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.orchestrator.routing import ClinicCache, follow
from evosaga.orchestrator.whatsapp.reconciliation.observe import keys_of
from evosaga.orchestrator.whatsapp.redis_use import REDIS_USE
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.sagas.whatsapp.steps import routing_key
from tests.control.conftest import Gossip
from tests.support.commandline import commandline
from tests.support.driving import create, delete, entries, nothing_pending, outcome, publish
from tests.support.sample_worker import sample_worker
from tests.support.valkeys import Cluster, cluster, lone_node
from tests.support.waiting import eventually

_OF_EVENTS = key_slot(streams.EVENTS.encode()) * 3 // 16384
_OF_COMMANDS = key_slot(streams.COMMANDS.encode()) * 3 // 16384


@pytest.fixture(scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Three masters, and one replica, of the one that has the events."""
    async with cluster(tmp_path_factory.mktemp("cluster"), [_OF_EVENTS]) as made:
        yield made


@pytest.fixture
async def clustered(nodes: Cluster) -> AsyncIterator[Redis]:
    """A client of the cluster, which is empty."""
    client = streams.connect(nodes.url)
    for master in await redis_clients.masters(client):
        await master.execute_command("FLUSHALL")  # type: ignore[no-untyped-call]
    yield client
    await client.aclose()


@pytest.fixture
def settings(settings: Settings, nodes: Cluster, clustered: Redis) -> Settings:
    return settings.model_copy(update={"redis_url": nodes.url})


async def all_keys(redis: Redis) -> set[str]:
    found: set[str] = set()
    for master in await redis_clients.masters(redis):
        found |= {key.decode() async for key in master.scan_iter("*")}
    return found


async def test_everything_that_works_on_a_single_redis_works_on_a_cluster(
    settings: Settings, pool: Pool, clustered: Redis, nodes: Cluster
) -> None:
    redis, asked = clustered, create(channel="WHATSAPP-BAILEYS")
    await redis_checks.require(redis, use=REDIS_USE)
    gossip = Gossip(refuses=False)
    async with (
        running_worker(settings, gossip.registry()) as worker,
        aclosing(follow(redis, pool)) as changes,
    ):
        coming = asyncio.ensure_future(anext(changes))
        await publish(redis, asked)
        made = await outcome(pool, asked["id"])
        assert made.status == "completed", made
        name = str(made.instance_name)
        change = await asyncio.wait_for(coming, 20)
        assert (change.kind, change.route.instance_name) == ("added", name)
        await _a_sample_worker_takes_a_message(settings, redis, name)
        await _find_and_forget(redis, nodes.nodes[0].port, pool, name)
        assert [key.instance_name async for page in keys_of(redis) for key in page] == [name]
        assert json.loads(await redis.get(f"evosaga:qr:{name}") or b"{}")["code"]
        assert await wa_events.publish(redis, "digest", {"data": "{}"}, 60)
        assert not await wa_events.publish(redis, "digest", {"data": "{}"}, 60)
        assert {f"whatsapp:instance:{name}", f"evosaga:filled:{{whatsapp:instance:{name}}}"} <= (
            await all_keys(redis)
        )

        # Parked and replayed; deleted, with a mark in each slot.
        gossip.refuses = True
        parked = await outcome(pool, await publish(redis, create()))
        gossip.refuses = False
        wish = {"type": "saga.replay", "data": {"saga_id": str(parked.saga_id)}}
        await publish(redis, {"id": str(uuid.uuid4()), **wish})
        await eventually(lambda: _is(pool, parked, "completed"), 20)
        gone = await outcome(pool, await publish(redis, delete(name)))
        assert (parked.status, gone.status) == ("failed", "completed")
        left = {key for key in await all_keys(redis) if name in key}
        assert left == {f"evosaga:removed:{{whatsapp:instance:{name}}}"} | {
            f"evosaga:removed:{{evosaga:qr:{name}}}"
        }

        # Dead letters, and back with them.
        await redis.xadd(streams.COMMANDS, {b"data": b"nonsense"})
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        letters, _ = await dead_letters.newest(redis, 10)
        await dead_letters.send_again(redis, letters)
        await eventually(lambda: redis.xlen(streams.DEAD_COMMANDS))
        await eventually(lambda: nothing_pending(redis))

        # What evosaga does not use itself, for steps of other people.
        pushed: Any = redis.rpush("a list", "x", "y")
        assert await pushed == 2
        with pytest.raises(ClusterCrossSlotError):
            await redis.mget("a", "b")

        assert await redis_checks.trouble_of(redis, "worker", REDIS_USE) is None
        assert worker.reader.healthy
    await _told_again(pool, redis)
    assert await retention.trim(redis, streams.COMMANDS, retention.Retention(0)) == 0
    await streams.drop_idle_consumers(redis, 0)


async def _is(pool: Pool, saga: SagaView, status: str) -> bool:
    found = await find_saga(pool, str(saga.saga_id))
    return found is not None and found.status == status


async def _find_and_forget(redis: Redis, port: int, pool: Pool, name: str) -> None:
    """As a routing worker does, with our client and with redis-py's own."""
    async with RedisCluster(host="127.0.0.1", port=port, decode_responses=True) as own:
        for client in (redis, own):
            cache = ClinicCache(client, pool)  # type: ignore[arg-type]
            found = await cache.get(name)
            assert found is not None
            assert await cache._look(name) == (found.value().encode(), found)
            await cache.invalidate(name)
            again = await cache.get(name)
            assert again is not None
            assert again.value() == found.value()
            assert await cache.set(again)


async def _told_again(pool: Pool, redis: Redis) -> None:
    ids = [json.loads(fields[b"data"])["id"] for _, fields in await entries(redis, streams.EVENTS)]
    long_ago = datetime.now(UTC) - timedelta(days=1)
    again = await republish_from(pool, redis, "me", long_ago, lambda _, __: None)
    more = await republish_between(
        pool, redis, long_ago, datetime.now(UTC) + timedelta(hours=1), lambda _, __: None
    )
    assert again == more > 20
    told = [json.loads(fields[b"data"])["id"] for _, fields in await entries(redis, streams.EVENTS)]
    assert told.count(ids[0]) == 3


async def _a_sample_worker_takes_a_message(settings: Settings, redis: Redis, name: str) -> None:
    event = json.dumps({"type": "messages.upsert", "id": "first"})
    async with sample_worker(settings) as sample:
        assert await sample.says() == {"added": name, "instances": 1}
        assert await wa_events.publish(redis, "first", {"instance_name": name, "data": event}, 60)
        assert (await sample.says())["id"] == "first"


async def test_a_name_with_braces_of_its_own_has_its_companions_in_its_slot(
    clustered: Redis, nodes: Cluster
) -> None:
    async with streams.connect(nodes.url, "a.") as behind:
        for name in ("wa-1", "a{b}c", "a}b", "a{b", "a{}b", "}{"):
            for redis, prefix in ((clustered, ""), (behind, "a.")):
                key = routing_key.key(name)
                filled = routing_key.filled_key(name, redis)
                assert filled.startswith("evosaga:filled:")
                assert key_slot((prefix + key).encode()) == key_slot((prefix + filled).encode())
    plain = beside(streams.connect("redis://h"), "whatsapp:instance:a", "evosaga:filled:a")
    assert plain == "evosaga:filled:a"


async def test_a_master_that_fails_in_the_middle_is_waited_for_and_what_it_lost_is_told_again(
    settings: Settings, pool: Pool, clustered: Redis, nodes: Cluster
) -> None:
    redis, commands = clustered, [create() for _ in range(3)]
    old = await nodes.master_of(streams.EVENTS)
    [heir] = await nodes.replicas_of(old)
    await eventually(nodes.replicating, 20)
    async with running_worker(settings) as worker:
        await publish(redis, commands[0])
        assert (await outcome(pool, commands[0]["id"])).status == "completed"
        # What comes now is acknowledged by the master, and the replica never hears of it.
        heir.pause()
        await publish(redis, commands[1])
        assert (await outcome(pool, commands[1]["id"], 30)).status == "completed"
        before = {json.loads(f[b"data"])["id"] for _, f in await entries(redis, streams.EVENTS)}
        old.kill()
        heir.wake()
        await publish(redis, commands[2])
        assert (await outcome(pool, commands[2]["id"], 60)).status == "completed"

        async def it_is_the_heir() -> bool:
            return await nodes.master_of(streams.EVENTS) is heir

        await eventually(it_is_the_heir, 20, message="the replica to be the master")

        async def all_told() -> bool:
            rows = await pool.fetch("SELECT saga_id, sequence FROM evosaga.saga_events")
            told = {json.loads(f[b"data"])["id"] for _, f in await entries(redis, streams.EVENTS)}
            return told >= before | {f"{row['saga_id']}:{row['sequence']}" for row in rows}

        await eventually(all_told, 30, message="every event to be told on the new master")
        await eventually(lambda: worker.reader.healthy, 30)
        assert not worker.failed.done()
    old.start()
    await eventually(nodes.well, 30)
    await eventually(nodes.replicating, 30)


async def test_follow_up_commands_that_only_their_own_master_lost_are_told_again(
    pool: Pool, clustered: Redis
) -> None:
    redis, told = clustered, relay_position
    nothing = await told.read(redis)
    await told.tell(redis, [b"{}"], [b"first"], nothing, 10)
    await told.tell(redis, [b"{}"], [b"second"], await told.read(redis), 20)
    await told.tell(redis, [b"{}"], [], await told.read(redis), 30)
    assert (await told.read(redis)).up_to == 30
    mark = follow_up_position._mark(redis)

    await redis.set(mark, "10")  # as on a replica that was behind
    lost = await told.read(redis)
    assert (lost.up_to, lost.commands_lost) == (10, True)
    await told.replace(redis, lost, 10)
    assert (await told.read(redis)).up_to == 10
    await told.tell(redis, [b"{}"], [], await told.read(redis), 30)
    assert (await told.read(redis)).up_to == 30

    await redis.delete(mark)
    lost = await told.read(redis)
    assert (lost.up_to, lost.commands_lost) == (None, True)
    relay = Relay(pool, redis, "me")
    await pool.execute("UPDATE evosaga.relay SET position = 30")
    assert await relay.pump() in (True, False)
    assert (await told.read(redis)).commands_lost is False


async def test_a_move_is_followed_while_the_others_can_not_be_asked_and_who_is_gone_is_closed(
    clustered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await clustered.set("whatsapp:instance:x", "1")
    cache = clustered.nodes_manager.slots_cache
    slot = key_slot(b"whatsapp:instance:x")
    cache[slot] = [next(one[0] for one in cache.values() if one[0] is not cache[slot][0])]

    async def away(failed: str | None = None) -> None:
        raise RedisConnectionError("no node of the cluster answers")

    with monkeypatch.context() as patched:
        patched.setattr(clustered, "refresh", away)
        assert await clustered.get("whatsapp:instance:x") == b"1"
    closed: list[Redis] = []

    async def close() -> None:
        closed.append(gone)

    clustered._clients["127.0.0.1:1"] = gone = Redis(port=1)
    monkeypatch.setattr(gone, "aclose", close)
    await clustered.refresh()
    assert closed == [gone]
    assert "127.0.0.1:1" not in clustered._clients
    assert await clustered.get("whatsapp:instance:x") == b"1"


async def test_a_cluster_whose_slots_nobody_has_yet_is_waited_for(tmp_path: Path) -> None:
    async with lone_node(tmp_path) as node, streams.connect(Cluster([node]).url) as redis:
        with pytest.raises(RedisConnectionError):
            await redis.set("whatsapp:instance:x", "1")
        with pytest.raises(RedisConnectionError):
            await redis.execute_command("OBJECT", "ENCODING", "x")  # type: ignore[no-untyped-call]
        await node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await eventually(Cluster([node]).well, 20)
        assert await redis.set("whatsapp:instance:x", "1")


# -- the command line


async def test_a_url_that_does_not_fit_is_refused_with_the_right_one(
    settings: Settings, nodes: Cluster, tmp_path: Path, servers: Any
) -> None:
    evosaga = commandline(tmp_path, settings)
    node = nodes.nodes[0]
    ran = await evosaga.having(redis_url=node.url)("worker")
    assert ran.code == 2
    assert f"set EVOSAGA_REDIS_URL to redis+cluster://127.0.0.1:{node.port}/" in ran.err
    told = await evosaga("doctor", "--json")
    found = {check["check"]: check for check in told.json["checks"]}
    assert found["redis"]["said"].endswith("a cluster of 3 masters")
    assert found["replicas"]["verdict"] == "warn"
    assert "2 of 3 masters have no replica" in found["replicas"]["said"]


async def test_a_cluster_part_of_which_nobody_serves_is_held_and_said(
    settings: Settings, clustered: Redis, nodes: Cluster
) -> None:
    lonely = nodes.nodes[next(n for n in range(3) if n not in (_OF_EVENTS, _OF_COMMANDS))]
    assert await redis_checks.trouble_of(clustered, "worker", REDIS_USE) is None
    lonely.kill()

    async def said() -> bool:
        found = await redis_checks.look(clustered, use=REDIS_USE)
        return any("are served by no node" in fault.said for fault in found.faults)

    await eventually(said, 20, message="the slots to be missed")
    assert not any(fault.fatal for fault in (await redis_checks.look(clustered)).faults)
    lonely.start()
    await eventually(nodes.well, 20)
