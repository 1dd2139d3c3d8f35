"""Redis comes back with less than it had: empty, as of yesterday, or as a replica of the old one.

What it has lost is told again from the log; what it hands out again is known by its id; and a
publisher that is not sure publishes again.
"""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.commands.consumer
from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.valkey import local_valkey
from tests.harness.chaos.proxy import Hole, Proxy, through, upstream_of
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    entries,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually
from tests.support.workers import Worker

Command = dict[str, Any]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.orchestrator.commands.consumer, "_RECLAIM_AFTER", 0.5)


@pytest.fixture
def settings(settings: Settings, own_valkey: LocalServer) -> Settings:
    """On a Valkey that nobody else uses."""
    return settings.model_copy(update={"redis_url": own_valkey.url})


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with running_worker(settings) as worker:
        yield worker


def data(server: LocalServer) -> Path:
    """Where it keeps its append-only file."""
    return server.folder / server.kind / "data" / "appendonlydir"


async def completed(pool: Pool, commands: Iterable[Command]) -> None:
    for command in commands:
        saga = await outcome(pool, command["id"], 30)
        assert saga.status == "completed", saga


async def all_is_as_it_should_be(
    pool: Pool, redis: Redis, evolution: SimulatedEvolution, commands: Iterable[Command]
) -> None:
    """Every command was obeyed once, every event is on the stream, and nothing is left over."""
    await completed(pool, commands)
    await eventually(lambda: nothing_pending(redis), 20, message="nothing to be pending")

    async def all_told() -> bool:
        rows = await pool.fetch("SELECT saga_id, sequence FROM evosaga.saga_events")
        told = {json.loads(e[b"data"])["id"] for _, e in await entries(redis, streams.EVENTS)}
        return told >= {f"{row['saga_id']}:{row['sequence']}" for row in rows}

    await eventually(all_told, 20, message="every event to be told")
    made = Counter(entry.name for entry in evolution.journal if entry.applied == "created")
    assert made == {f"wa-{command['id']}": 1 for command in commands}
    assert set(evolution.live()) == set(made)
    assert await dead_letters(redis) == []
    assert await contradictions(pool) == []


@pytest.mark.fault("h3")
async def test_a_redis_that_comes_back_empty_is_given_its_group_and_told_everything_again(
    worker: Worker,
    pool: Pool,
    own_redis: Redis,
    own_valkey: LocalServer,
    evolution: SimulatedEvolution,
) -> None:
    before, under_way, after = create(), create(), create()
    await publish(own_redis, before)
    await completed(pool, [before])
    evolution.arm("slow_after", operation="create", seconds=0.3)
    await publish(own_redis, under_way)
    await eventually(lambda: f"wa-{under_way['id']}" in evolution.live())
    await asyncio.to_thread(own_valkey.kill)
    shutil.rmtree(data(own_valkey))
    await asyncio.to_thread(own_valkey.start_again)
    await publish(own_redis, after)  # perhaps before anybody has noticed
    await all_is_as_it_should_be(pool, own_redis, evolution, [before, under_way, after])
    assert worker.reader.healthy
    assert not worker.failed.done()


@pytest.mark.fault("h4")
async def test_a_redis_as_of_yesterday_hands_out_what_was_done_and_knows_nothing_of_the_rest(
    settings: Settings,
    pool: Pool,
    own_redis: Redis,
    own_valkey: LocalServer,
    evolution: SimulatedEvolution,
    tmp_path: Path,
) -> None:
    """The XACK of two commands is undone, the XADD of a third is gone, with all their events."""
    pending, unread, later = create(), create(), create()
    await streams.ensure_group(own_redis)
    await publish(own_redis, pending)
    await own_redis.xreadgroup(streams.GROUP, "the-dead", {streams.COMMANDS: ">"})
    await publish(own_redis, unread)
    await asyncio.to_thread(own_valkey.stop)
    shutil.copytree(data(own_valkey), tmp_path / "yesterday")
    await asyncio.to_thread(own_valkey.start_again)
    async with running_worker(settings) as worker:
        await publish(own_redis, later)
        await all_is_as_it_should_be(pool, own_redis, evolution, [pending, unread, later])
        events = await pool.fetchval("SELECT count(*) FROM evosaga.saga_events")
        await asyncio.to_thread(own_valkey.kill)
        shutil.rmtree(data(own_valkey))
        shutil.copytree(tmp_path / "yesterday", data(own_valkey))
        await asyncio.to_thread(own_valkey.start_again)
        await publish(own_redis, later)  # its publisher is not sure any more
        await all_is_as_it_should_be(pool, own_redis, evolution, [pending, unread, later])
        assert await pool.fetchval("SELECT count(*) FROM evosaga.saga_events") == events
        assert not worker.failed.done()


async def replicate(redis: Redis, *whom: str) -> None:
    """Make it a replica, or a master of its own again."""
    await redis.execute_command("REPLICAOF", *whom)  # type: ignore[no-untyped-call]


async def caught_up(master: Redis, replica: Redis) -> bool:
    ours, theirs = await master.info("replication"), await replica.info("replication")
    return bool(
        theirs["master_link_status"] == "up"
        and theirs["slave_repl_offset"] == ours["master_repl_offset"]
    )


@pytest.mark.fault("h5")
async def test_a_failover_that_loses_what_was_acknowledged_loses_and_repeats_no_saga(
    settings: Settings,
    pool: Pool,
    own_redis: Redis,
    own_valkey: LocalServer,
    evolution: SimulatedEvolution,
) -> None:
    """The replica hears nothing for a while, without a word; then the master dies."""
    before, pending, unknown, after = create(), create(), create(), create()
    master = upstream_of(own_valkey.url)
    with local_valkey() as other:
        replica = streams.connect(other.url)
        async with Proxy(master) as to_replica, Proxy(master) as to_worker:
            await replicate(replica, "127.0.0.1", str(to_replica.port))
            led = settings.model_copy(update={"redis_url": through(own_valkey.url, to_worker)})
            async with running_worker(led) as worker:
                await publish(own_redis, before)
                await all_is_as_it_should_be(pool, own_redis, evolution, [before])
                await own_redis.xadd(streams.COMMANDS, {"data": json.dumps(pending)})
                await eventually(lambda: caught_up(own_redis, replica), 20, every=0.002)
                await to_replica.arm(Hole())
                await publish(own_redis, unknown)
                await completed(pool, [pending, unknown])
                await asyncio.to_thread(own_valkey.kill)
                await replicate(replica, "NO", "ONE")
                known = b"".join(e[b"data"] for _, e in await entries(replica, streams.COMMANDS))
                assert pending["id"].encode() in known
                assert unknown["id"].encode() not in known, "it was to be lost"
                await to_worker.lead_to(upstream_of(other.url))
                for command in (pending, unknown, after):  # the first two by a wary publisher
                    await publish(replica, command)
                everything = [before, pending, unknown, after]
                await all_is_as_it_should_be(pool, replica, evolution, everything)
                assert not worker.failed.done()
        await replica.aclose()


@pytest.mark.fault("h10")
async def test_what_somebody_else_trimmed_unread_is_gone_and_stops_nobody(
    settings: Settings, pool: Pool, own_redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Only by hand: our own trim looks at ids, and never passes what is unread or pending."""
    lost, kept, again = create(), create(), create()
    await streams.ensure_group(own_redis)
    for command in (lost, kept):
        await publish(own_redis, command)
    await own_redis.xtrim(streams.COMMANDS, maxlen=1, approximate=False)
    async with running_worker(settings) as worker:
        await publish(own_redis, again)
        await all_is_as_it_should_be(pool, own_redis, evolution, [kept, again])
        assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas") == 2
        await publish(own_redis, lost)  # whoever hears nothing of a command publishes it again
        await all_is_as_it_should_be(pool, own_redis, evolution, [lost, kept, again])
        assert worker.reader.healthy


_MANY = 100_000
# One command over and over again, read by somebody who died.
_FILL = """
for i = 1, ARGV[2] do redis.call('XADD', KEYS[1], '*', 'data', ARGV[1]) end
redis.call('XREADGROUP', 'GROUP', ARGV[3], 'the-dead', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], '>')
"""


@pytest.mark.fault("h13")
async def test_a_hundred_thousand_pending_messages_are_claimed_in_pages_and_delay_nobody(
    settings: Settings,
    pool: Pool,
    own_redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages: list[int] = []
    handle = evosaga.orchestrator.commands.consumer.CommandConsumer._handle

    async def counted(reader: Any, messages: Any) -> None:
        pages.append(len(messages))
        await handle(reader, messages)

    monkeypatch.setattr(evosaga.orchestrator.commands.consumer.CommandConsumer, "_handle", counted)
    old, new = create(), create()
    await streams.ensure_group(own_redis)
    await own_redis.eval(_FILL, 1, streams.COMMANDS, json.dumps(old), str(_MANY), streams.GROUP)
    async with running_worker(settings) as worker:
        await eventually(lambda: len(pages) > 2, 30)
        left = (await own_redis.xpending(streams.COMMANDS, streams.GROUP))["pending"]
        assert left > _MANY / 2, "the new one must come in the midst of it"
        await publish(own_redis, new)
        await completed(pool, [old, new])
        await eventually(lambda: len(pages) > 12, 30)
        assert max(pages) <= 100
        assert not worker.failed.done()
    assert len(evolution.journal.requests("create")) == 2
    assert await dead_letters(own_redis) == []


@pytest.mark.fault("h14")
async def test_a_step_that_takes_longer_than_a_message_may_be_idle_is_run_once(
    settings: Settings, pool: Pool, own_redis: Redis, evolution: SimulatedEvolution
) -> None:
    """Nothing but the accepting happens under a message, so nobody claims a step."""
    evolution.arm("slow", operation="create", seconds=1.5)  # three times as long
    command = create()
    async with running_worker(settings), running_worker(settings):
        await publish(own_redis, command)
        await eventually(lambda: len(evolution.journal.entries) > 0)
        assert await nothing_pending(own_redis), "the step is out, its message is not"
        await all_is_as_it_should_be(pool, own_redis, evolution, [command])
    assert len(evolution.journal.requests("create")) == 1
    told = "SELECT count(*) FROM evosaga.saga_events WHERE type = 'step.failed'"
    assert await pool.fetchval(told) == 0
