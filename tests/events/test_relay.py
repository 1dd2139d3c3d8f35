"""The relay: every committed event reaches the stream, each saga's in order, whatever breaks."""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

import evosaga.events.relay
from evosaga.events import relay_position as note
from evosaga.events import streams
from evosaga.events.append import Append, StatusRow
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.model import FollowUp, SagaEvent, StepStarted, StepSucceeded
from evosaga.events.relay import Relay
from evosaga.events.republish import republish_between, republish_from
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.sagas.whatsapp.ownership import KeyRing, stored
from tests.conftest import API_KEY, SECRET
from tests.support.appenders import new_sagas
from tests.support.driving import count, create, delete, entries, outcome, publish
from tests.support.waiting import eventually


async def new_saga(pool: Pool) -> UUID:
    return (await new_sagas(pool))[0]


async def tell(log: EventLog, saga: UUID, expected: int, count: int = 1, note: str = "w") -> None:
    """Append ``count`` events."""
    facts: list[SagaEvent] = [
        StepStarted(step="evolution", attempt=expected + i + 1, worker=note, lease_seconds=5)
        for i in range(count)
    ]
    await log.append(Append(saga, expected, facts, StatusRow("running"), str(saga), None, None))


@contextlib.asynccontextmanager
async def running(*relays: Relay) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pumped(relay: Relay) -> None:
    """It has published all there is."""
    while await relay.pump():
        pass


async def relayed(log: EventLog, pool: Pool, redis: Redis, events: int) -> tuple[Relay, UUID]:
    """A relay, and a saga of which it has published so many events."""
    relay, saga = Relay(pool, redis, "relay"), await new_saga(pool)
    await tell(log, saga, 0, events)
    await pumped(relay)
    return relay, saga


async def told(redis: Redis) -> list[dict[str, Any]]:
    return [json.loads(fields[b"data"]) for _, fields in await entries(redis, streams.EVENTS)]


async def committed(pool: Pool) -> list[str]:
    rows = await pool.fetch("SELECT saga_id, sequence FROM evosaga.saga_events ORDER BY position")
    return [f"{row['saga_id']}:{row['sequence']}" for row in rows]


def first_sights(seen: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(event["id"] for event in seen))


def assert_in_order(ids: list[str]) -> None:
    """Of every saga, sequence 0 comes first, then 1, 2, …"""
    seen: dict[str, int] = {}
    for id_ in ids:
        saga, _, sequence = id_.rpartition(":")
        assert int(sequence) == seen.get(saga, -1) + 1, f"{id_} after {seen.get(saga)}"
        seen[saga] = int(sequence)


async def everything_is_told(redis: Redis, pool: Pool, timeout: float = 10.0) -> list[str]:
    """Wait until it is; the ids in the order of their first sight."""

    async def all_there() -> bool:
        return set(first_sights(await told(redis))) == set(await committed(pool))

    await eventually(all_there, timeout, message="every committed event on the stream")
    ids = first_sights(await told(redis))
    assert_in_order(ids)
    return ids


async def test_committed_events_are_told_in_order_and_once_while_nothing_breaks(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay = Relay(pool, redis, "me")
    sagas = [await new_saga(pool) for _ in range(20)]

    async def live(saga: UUID) -> None:
        for i in range(0, 10, 2):
            await tell(log, saga, i, 2)

    async with running(relay):
        await asyncio.gather(*map(live, sagas))
        relay.nudge()
        ids = await everything_is_told(redis, pool)
    assert ids == await committed(pool)
    assert len(await told(redis)) == len(ids) == 200


@pytest.mark.fault("e9", "v1")
async def test_nothing_is_skipped_when_transactions_commit_out_of_order(
    log: EventLog, pool: Pool, redis: Redis, database_url: str
) -> None:
    """A transaction draws its positions, stays open while others append, and commits last.

    The others wait for it, so that no reader can see a later position and miss an earlier one.
    """
    insert = (
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) VALUES "
        "($1, $2, 'step.started', "
        """'{"step": "s", "attempt": 1, "worker": "w", "lease_seconds": 1}', 'c')"""
    )
    a, b, c = [await new_saga(pool) for _ in range(3)]
    relay = Relay(pool, redis, "me")
    slow = await asyncpg.connect(database_url)
    async with running(relay):
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute(insert, a, 0)
        through_the_log = asyncio.create_task(tell(log, b, 0))
        by_hand = asyncio.create_task(pool.execute(insert, c, 0))

        async def both_wait() -> bool:
            return (
                await count(
                    pool,
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                    "AND database = "
                    "(SELECT oid FROM pg_database WHERE datname = current_database())",
                )
                == 2
            )

        await eventually(both_wait)
        relay.nudge()
        await relay.pump()
        assert await told(redis) == []
        await slow.execute(insert, a, 1)
        await transaction.commit()
        await asyncio.gather(through_the_log, by_hand)
        ids = await everything_is_told(redis, pool)
    await slow.close()
    assert ids[:2] == [f"{a}:0", f"{a}:1"]
    assert len(ids) == 4


@pytest.mark.fault("e9")
async def test_many_writers_that_commit_and_roll_back_at_random(
    log: EventLog, pool: Pool, redis: Redis, database_url: str
) -> None:
    rng = random.Random(11)

    async def writer(seed: int) -> None:
        connection = await asyncpg.connect(database_url)
        dice = random.Random(seed)
        for _ in range(15):
            saga = await new_saga(pool)
            with contextlib.suppress(ZeroDivisionError):
                async with connection.transaction():
                    for sequence in range(dice.randint(1, 3)):
                        await connection.execute(
                            "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, "
                            "correlation_id) VALUES ($1, $2, 'saga.completed', '{}', 'c')",
                            saga,
                            sequence,
                        )
                        await asyncio.sleep(dice.uniform(0, 0.003))
                    if dice.random() < 0.3:
                        raise ZeroDivisionError
        await connection.close()

    async def appender() -> None:
        saga = await new_saga(pool)
        for i in range(40):
            await tell(log, saga, i)
            await asyncio.sleep(rng.uniform(0, 0.005))

    async with running(Relay(pool, redis, "one")):
        await asyncio.gather(*(writer(seed) for seed in range(4)), appender())
        await everything_is_told(redis, pool)
    assert len(await told(redis)) == len(await committed(pool))


@pytest.mark.fault("g2")
async def test_two_relays_repeat_at_most_and_a_dead_leader_is_followed_in_seconds(
    log: EventLog, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader stops without a word; the other takes over when its lease is over."""
    monkeypatch.setattr(evosaga.events.relay, "_LEASE_SECONDS", 1.5)
    first, second = Relay(pool, redis, "first"), Relay(pool, redis, "second")
    saga = await new_saga(pool)
    async with running(first):
        await tell(log, saga, 0, 5)
        await everything_is_told(redis, pool)
    await tell(log, saga, 5, 5)
    assert not await second.pump(), "the first still leads"
    async with running(second):
        await everything_is_told(redis, pool, timeout=8)
    leader = await pool.fetchval("SELECT leader FROM evosaga.relay")
    assert leader == "second"


@pytest.mark.fault("g1", "g2")
async def test_a_leader_that_was_paused_publishes_nothing_late(
    log: EventLog, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read its batch and lost the lease; when it wakes up Redis has been told more."""
    zombie, heir = Relay(pool, redis, "zombie"), Relay(pool, redis, "heir")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 5)
    asleep, wake = asyncio.Event(), asyncio.Event()
    tell_now = note.tell

    async def tell_late(*arguments: Any) -> None:
        if not asleep.is_set():
            asleep.set()
            await wake.wait()
        await tell_now(*arguments)

    monkeypatch.setattr(note, "tell", tell_late)
    paused = asyncio.create_task(zombie.pump())
    await asyncio.wait_for(asleep.wait(), 5)
    await pool.execute("UPDATE evosaga.relay SET lease_until = now() - interval '1 second'")
    await tell(log, saga, 5, 5)
    await heir.pump()
    position = await pool.fetchval("SELECT position FROM evosaga.relay")
    wake.set()
    await paused
    await heir.pump()
    assert await pool.fetchval("SELECT position FROM evosaga.relay") == position
    assert [event["id"] for event in await told(redis)] == await committed(pool)


@pytest.mark.fault("g3")
async def test_redis_goes_away_and_comes_back(
    log: EventLog, pool: Pool, own_valkey: LocalServer, own_redis: Redis
) -> None:
    saga = await new_saga(pool)
    relay = Relay(pool, own_redis, "me")
    async with running(relay):
        await tell(log, saga, 0, 5)
        relay.nudge()
        await everything_is_told(own_redis, pool)
        await asyncio.to_thread(own_valkey.stop)
        for i in range(5, 50, 5):
            await tell(log, saga, i, 5)
            relay.nudge()
        await asyncio.to_thread(own_valkey.start_again)
        assert len(await everything_is_told(own_redis, pool, timeout=20)) == 50


@pytest.mark.fault("g5")
async def test_only_what_redis_acknowledged_counts_as_told(
    log: EventLog, pool: Pool, own_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is full in the middle of a backlog, again and again, and is given a little more."""
    monkeypatch.setattr(evosaga.events.relay, "_BATCH", 20)
    relay = Relay(pool, own_redis, "me")
    sagas = [await new_saga(pool) for _ in range(4)]
    for i in range(0, 50, 5):
        for saga in sagas:
            await tell(log, saga, i, 5, note="x" * 2000)
    used = (await own_redis.info("memory"))["used_memory"]
    positions = set()
    for room in range(0, 1_000_000, 100_000):
        await own_redis.config_set("maxmemory", used + room)
        with contextlib.suppress(RedisError):
            while await relay.pump():
                pass
        position = await pool.fetchval("SELECT position FROM evosaga.relay")
        positions.add(position)
        ids = first_sights(await told(own_redis))
        assert_in_order(ids)
        marked = (
            await pool.fetchval(
                "SELECT count(*) FROM evosaga.saga_events WHERE position <= $1", position
            )
            == 2
        )
        assert (await committed(pool))[:marked] == ids[:marked]
    assert len(positions) > 2, "it was never full half way"
    await own_redis.config_set("maxmemory", 0)
    while await relay.pump():
        pass
    assert await everything_is_told(own_redis, pool) == await committed(pool)


@pytest.mark.fault("g5")
async def test_memory_that_comes_and_goes_during_a_batch_never_turns_the_order_round(
    log: EventLog, pool: Pool, own_valkey: LocalServer, own_redis: Redis
) -> None:
    """An event may not be told before the one that was refused just ahead of it."""
    relay = Relay(pool, own_redis, "me")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 900, note="x" * 1000)
    over = asyncio.Event()

    async def meddle() -> None:
        async with streams.connect(own_valkey.url) as meddler:
            while not over.is_set():
                await meddler.config_set("maxmemory", 1)
                await meddler.config_set("maxmemory", 0)

    meddling = [asyncio.create_task(meddle()) for _ in range(4)]
    try:
        for _ in range(8):
            with contextlib.suppress(RedisError):
                await relay.pump()
            assert_in_order(first_sights(await told(own_redis)))
    finally:
        over.set()
        await asyncio.gather(*meddling)
    while await relay.pump():
        pass
    await everything_is_told(own_redis, pool)


# -- what is told


async def test_events_are_cloudevents_without_private_fields_and_without_secrets(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    private = {
        "name": "Clinica-Da-Dona-Zulmira",
        "number": "5511987654321",
        "webhook_url": "https://hooks.example/very-private-path",
    }
    settings = settings.model_copy(
        update={"webhook_hosts": {"hooks.example"}, "public_url": "http://127.0.0.1:9"}
    )
    command = create(channel="WHATSAPP-BAILEYS", **private)
    command |= {"correlationid": "story-1", "causationid": "what-came-before"}
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, command))
        assert saga.status == "completed"
        webhook = await pool.fetchval("SELECT webhook_token FROM healthcare.integrations")
        qr = json.loads(await redis.get(f"evosaga:qr:{saga.instance_name}") or b"{}")
        deletion = await outcome(pool, await publish(redis, delete(str(saga.instance_name))))
        assert deletion.status == "completed"
        await everything_is_told(redis, pool)
    seen = await told(redis)
    assert {event["type"] for event in seen} <= TYPES
    assert all({"saga", "version", "organization_id"} <= e["data"].keys() for e in seen)
    first = next(event for event in seen if event["subject"] == str(saga.saga_id))
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    data = first.pop("data")
    assert re.fullmatch("[0-9a-f]{64}", data.pop("command_hash"))
    assert data == {
        "saga": "create-integration",
        "version": 1,
        "organization_id": command["data"]["organization_id"],
        "command": "integration.create",
        "command_id": command["id"],
        "business_key": f"whatsapp/evolution/{command['data']['organization_id']}",
        "instance_name": saga.instance_name,
        "deadline_seconds": 900.0,
    }
    assert first == {
        "specversion": "1.0",
        "id": f"{saga.saga_id}:0",
        "source": "/evosaga",
        "type": "saga.started",
        "subject": str(saga.saga_id),
        "datacontenttype": "application/json",
        "correlationid": "story-1",
        "causationid": command["id"],
    }

    keys = KeyRing([SECRET])
    token = keys.instance_token(saga.saga_id, keys.current)
    assert webhook == stored(keys.webhook_token(saga.saga_id, keys.current))
    on_the_stream = repr(await redis.xrange(streams.EVENTS))
    in_postgres = repr(await pool.fetch("SELECT * FROM evosaga.saga_events, evosaga.sagas"))
    for secret in (API_KEY, SECRET, token, webhook, qr["base64"], qr["code"], qr["pairing_code"]):
        assert secret is None or secret not in on_the_stream + in_postgres
    for value in private.values():
        assert value not in on_the_stream


TYPES = {
    "saga.started", "saga.rejected", "step.started", "step.succeeded", "step.failed",
    "compensation.began", "compensation.started", "compensation.succeeded", "compensation.failed",
    "saga.completed", "saga.compensated", "saga.failed", "saga.resumed", "saga.cancel_requested",
}  # fmt: skip


# -- a Redis that lost what it was told


@pytest.mark.fault("g4")
async def test_a_flushed_redis_is_told_everything_again_in_order_and_by_itself(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay = Relay(pool, redis, "me")
    sagas = [await new_saga(pool) for _ in range(5)]
    async with running(relay):
        for saga in sagas:
            await tell(log, saga, 0, 4)
        relay.nudge()
        await everything_is_told(redis, pool)
        await redis.flushall()
        assert await everything_is_told(redis, pool) == await committed(pool)
        await tell(log, sagas[0], 4, 2)
        relay.nudge()
        assert await everything_is_told(redis, pool) == await committed(pool)
    assert len(await told(redis)) == 22, "and only once"


@pytest.mark.fault("g4")
async def test_a_flush_between_the_look_and_the_telling_is_noticed_all_the_same(
    log: EventLog, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(pool, redis, "me")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 5)
    assert not await relay.pump()
    await tell(log, saga, 5, 5)
    tell_now = note.tell

    async def flush_first(*arguments: Any) -> None:
        monkeypatch.setattr(note, "tell", tell_now)
        await redis.flushall()
        await tell_now(*arguments)

    monkeypatch.setattr(note, "tell", flush_first)
    assert await relay.pump(), "it has to look again"
    assert await told(redis) == []
    while await relay.pump():
        pass
    assert [event["id"] for event in await told(redis)] == await committed(pool)


@pytest.mark.fault("g4")
async def test_a_redis_that_comes_back_with_an_older_file_is_told_only_the_rest(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    """What an append-only file lost at its end takes the note about it along."""
    relay = Relay(pool, redis, "me")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 6)
    await relay.pump()
    older, said = await entries(redis, streams.EVENTS), (await note.read(redis)).up_to
    assert said is not None
    await tell(log, saga, 6, 6)
    await relay.pump()
    await redis.flushall()
    for id_, fields in older:
        await redis.xadd(streams.EVENTS, {"data": fields[b"data"]}, id=id_)
    await redis.set(note.TOLD, said)
    while await relay.pump():
        pass
    assert [event["id"] for event in await told(redis)] == await committed(pool)


@pytest.mark.fault("g4")
async def test_a_stream_that_is_there_without_the_note_is_not_told_twice(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    """As a release that kept no note leaves it. A stranger's entry misleads nobody."""
    relay = Relay(pool, redis, "me")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 5)
    await relay.pump()
    await redis.xadd(streams.EVENTS, {b"data": b'{"id": "x:notice:1"}'})
    await redis.delete(note.TOLD)
    assert not await relay.pump()
    await tell(log, saga, 5)
    await relay.pump()
    assert len(await entries(redis, streams.EVENTS)) == 7


@pytest.mark.fault("g4")
async def test_only_as_much_is_told_again_as_the_stream_would_have_kept(
    log: EventLog, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = await new_saga(pool)
    await tell(log, saga, 0, 5)
    await make_older(pool, 30)
    await tell(log, saga, 5, 5)
    relay = Relay(pool, redis, "me")
    await relay.pump()
    await redis.flushall()
    while await relay.pump():
        pass
    assert [event["id"] for event in await told(redis)] == (await committed(pool))[5:]


@pytest.mark.fault("g4")
async def test_the_commands_that_come_with_events_are_given_again_too(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    saga = await new_saga(pool)
    done = StepSucceeded(
        step="s", attempt=1, follow_up=FollowUp(type="instance.watch", data={"a": 1})
    )
    await log.append(Append(saga, 0, [done], StatusRow("running"), str(saga), None, None))
    relay = Relay(pool, redis, "me")
    await relay.pump()
    before = await entries(redis, streams.COMMANDS)
    await redis.flushall()
    while await relay.pump():
        pass
    again = await entries(redis, streams.COMMANDS)
    assert [fields for _, fields in again] == [fields for _, fields in before]
    assert len(again) == 1


async def test_a_person_can_have_everything_told_again_since_a_time_in_order(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    """With a relay that leads at the same time, and new events that come in between."""
    relay = Relay(pool, redis, "leader")
    old, new = await new_saga(pool), await new_saga(pool)
    await tell(log, old, 0, 5)
    await make_older(pool, 3)
    await tell(log, new, 0, 1500)
    seen: list[tuple[int, int]] = []
    appended: list[asyncio.Task[None]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if not appended:  # not before it has counted what there is
            appended.append(asyncio.create_task(tell(log, new, 1500, 5)))

    async with running(relay):
        relay.nudge()
        await everything_is_told(redis, pool)
        await redis.xtrim(streams.EVENTS, maxlen=0)  # by hand: Redis does not know of a loss
        since = await pool.fetchval("SELECT now() - interval '1 day'")
        assert await republish_from(pool, redis, "cli", since, progress) == 1500
        await asyncio.gather(*appended)
        relay.nudge()

        async def all_there() -> bool:
            return len(first_sights(await told(redis))) == 1505

        await eventually(all_there)
    ids = first_sights(await told(redis))
    assert_in_order(ids)
    assert seen[-1] == (1500, 1500)
    assert not any(id_.startswith(str(old)) for id_ in ids)


async def test_what_a_person_has_told_again_is_not_reported_as_a_loss(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay = Relay(pool, redis, "leader")
    await tell(log, await new_saga(pool), 0, 20)
    await relay.pump()
    since = await pool.fetchval("SELECT now() - interval '1 day'")
    with capture_logs() as lines:
        again = asyncio.create_task(republish_from(pool, redis, "cli", since, lambda *_: None))
        while not again.done():
            await relay.pump()
            await asyncio.sleep(0)
    assert await again == 20
    assert len(await told(redis)) == 40
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("info", "republishing_events")
    ]


async def test_a_person_can_have_a_stretch_told_again_without_a_worker(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay = Relay(pool, redis, "me")
    sagas = []
    for days in (3, 2, 1):
        sagas.append(await new_saga(pool))
        await tell(log, sagas[-1], 0, 3)
        await make_older(pool, days, sagas[-1])
    await relay.pump()
    await relay.resign()
    before = await redis.get(note.TOLD)
    await redis.xtrim(streams.EVENTS, maxlen=0)
    now = await log.now()
    since, until = now - timedelta(hours=50), now - timedelta(hours=40)
    assert await republish_between(pool, redis, since, until, lambda *_: None) == 3
    assert [event["subject"] for event in await told(redis)] == [str(sagas[1])] * 3
    assert await redis.get(note.TOLD) == before
    everything = await republish_from(
        pool, redis, "cli", since - timedelta(days=9), lambda *_: None
    )
    assert everything == 9
    assert first_sights(await told(redis))[3:] != []


async def make_older(pool: Pool, days: int, saga: UUID | None = None) -> None:
    """Shift events into the past, which the database refuses to everybody else."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(
            "UPDATE evosaga.saga_events SET recorded_at = recorded_at - $1::interval "
            "WHERE $2::uuid IS NULL OR saga_id = $2",
            timedelta(days=days),
            saga,
        )
