"""The relay's note in Redis and the stream that it speaks of prove each other."""

import asyncio
import json
import time
import uuid
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

import evosaga.events.relay
from evosaga.events import relay_position, streams
from evosaga.events.cloudevents import read_batch
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.relay import Relay
from evosaga.events.retention import Retention, trim
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.sagas.whatsapp.integration_events import Notice, cloud_event, record, unpublished
from tests.events.test_relay import committed, new_saga, pumped, relayed, running, tell, told
from tests.support.driving import entries


@pytest.mark.parametrize("hangs", ["redis", "postgres"])
async def test_a_relay_whose_server_hung_tells_nothing_from_where_it_was_and_reports_no_loss(
    log: EventLog, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """It looks at Redis, or reads its batch; an heir has told several batches before that ends."""
    monkeypatch.setattr(evosaga.events.relay, "_BATCH", 20)
    zombie, heir = Relay(pool, redis, "zombie"), Relay(pool, redis, "heir")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 5)
    await pumped(zombie)
    await tell(log, saga, 5, 100)
    asleep, wake = asyncio.Event(), asyncio.Event()

    def late(call: Any) -> Any:
        async def called(*arguments: Any, **named: Any) -> Any:
            if not asleep.is_set():
                asleep.set()
                await wake.wait()
            return await call(*arguments, **named)

        return called

    if hangs == "redis":
        monkeypatch.setattr(redis, "get", late(redis.get))
        monkeypatch.setattr(redis, "eval", late(redis.eval))
    else:
        monkeypatch.setattr(evosaga.events.relay, "read_batch", late(read_batch))
    paused = asyncio.create_task(zombie.pump())
    await asyncio.wait_for(asleep.wait(), 5)
    await pool.execute("UPDATE evosaga.relay SET lease_until = now() - interval '1 second'")
    await pumped(heir)
    assert [event["id"] for event in await told(redis)] == await committed(pool)
    wake.set()
    with capture_logs() as lines:
        await paused
        await pool.execute("UPDATE evosaga.relay SET lease_until = now() - interval '1 second'")
        await pumped(heir)
    assert [line["event"] for line in lines] == []
    assert [event["id"] for event in await told(redis)] == await committed(pool)


@pytest.mark.parametrize("value", ["not a number", "-5", "12 34", "99999999999", "", "a list"])
async def test_a_foreign_value_in_the_note_is_told_by_key_and_mended_and_ends_nobody(
    log: EventLog, pool: Pool, redis: Redis, value: str
) -> None:
    relay, saga = await relayed(log, pool, redis, 5)
    await redis.delete(relay_position.TOLD)
    if value == "a list":
        await redis.lpush(relay_position.TOLD, "x")
    else:
        await redis.set(relay_position.TOLD, value)
    await tell(log, saga, 5, 5)
    with capture_logs() as lines:
        await pumped(relay)
    assert [event["id"] for event in await told(redis)] == await committed(pool)
    assert (await relay_position.read(redis)).up_to == await pool.fetchval(
        "SELECT max(position) FROM evosaga.saga_events"
    )
    assert relay_position.TOLD in str(lines) or value == ""
    assert "lost" not in str(lines)


@pytest.mark.parametrize("lost", ["everything", "the stream", "the note", "the proof", "nothing"])
async def test_what_redis_loses_between_two_batches_is_seen_by_who_wrote_the_note_itself(
    log: EventLog, pool: Pool, redis: Redis, lost: str
) -> None:
    """It does not read it again first: the script compares. Nothing is skipped."""
    relay, saga = await relayed(log, pool, redis, 5)
    match lost:
        case "everything":
            await redis.flushall()
        case "the stream":
            await redis.delete(streams.EVENTS)
        case "the note":
            await redis.delete(relay_position.TOLD)
        case "the proof":
            await redis.delete(relay_position.PROOF)
    await tell(log, saga, 5, 5)
    await pumped(relay)
    assert [event["id"] for event in await told(redis)] == await committed(pool)


async def test_who_leads_again_goes_on_behind_what_another_told_meanwhile(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, saga = await relayed(log, pool, redis, 5)
    await relay.resign()
    heir = Relay(pool, redis, "heir")
    await tell(log, saga, 5, 5)
    await pumped(heir)
    await heir.resign()
    await tell(log, saga, 10, 5)
    await pumped(relay)
    assert [event["id"] for event in await told(redis)] == await committed(pool)


async def test_a_foreign_value_before_anything_was_told_is_no_hindrance(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    await redis.set(relay_position.TOLD, "12345")
    await redis.set(relay_position.PROOF, "12345 0-0 0 and more")
    relay = Relay(pool, redis, "me")
    await tell(log, await new_saga(pool), 0, 3)
    await pumped(relay)
    assert [event["id"] for event in await told(redis)] == await committed(pool)


@pytest.mark.parametrize("since", [0, 3])
async def test_a_stream_that_was_evicted_without_its_note_is_told_again(
    log: EventLog, pool: Pool, redis: Redis, since: int
) -> None:
    """Also when notices were published on a new stream before the relay has looked."""
    relay, _ = await relayed(log, pool, redis, 40)
    await redis.delete(streams.EVENTS)
    notice = Notice(uuid.uuid4(), uuid.uuid4(), "wa-x", "integration.connected")
    await record(pool, [notice] * since)
    await streams.publish_events(redis, [cloud_event(one) for one in await unpublished(pool)])
    with capture_logs() as lines:
        await pumped(relay)
    ids = [event["id"] for event in await told(redis)]
    assert [id_ for id_ in ids if ":notice:" not in id_] == await committed(pool)
    assert [line["event"] for line in lines] == [
        "relay_position_wrong",
        "redis_lost_events",
    ]


async def test_a_stream_that_was_trimmed_to_nothing_has_lost_nothing(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, saga = await relayed(log, pool, redis, 5)
    await redis.xtrim(streams.EVENTS, maxlen=0, approximate=False)
    await tell(log, saga, 5)
    await pumped(relay)
    assert len(await told(redis)) == 1


async def test_a_release_that_writes_no_proof_and_one_that_does_take_turns_without_telling_twice(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, saga = await relayed(log, pool, redis, 5)
    await tell(log, saga, 5, 5)
    position = await pool.fetchval("SELECT max(position) FROM evosaga.saga_events")
    await pumped(relay)
    old_proof = await redis.get(relay_position.PROOF)
    assert old_proof is not None
    await redis.set(relay_position.PROOF, b"1 0-1 1")  # of before what the older one has told
    assert int(await redis.get(relay_position.TOLD) or 0) == position, (
        "which reads a number and no more"
    )
    await tell(log, saga, 10)
    await pumped(relay)
    assert [event["id"] for event in await told(redis)] == await committed(pool)


# -- who does not lead


async def test_a_relay_that_does_not_lead_seldom_asks_however_much_is_committed_beside_it(
    pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, other = Relay(pool, redis, "leader"), Relay(pool, redis, "other")
    await leader.pump()
    asked = 0
    pump = other.pump

    async def counted() -> bool:
        nonlocal asked
        asked += 1
        return await pump()

    monkeypatch.setattr(other, "pump", counted)
    loop = asyncio.get_running_loop()
    async with running(other):
        until = loop.time() + 1.5
        while loop.time() < until:
            other.nudge()
            await asyncio.sleep(0.005)
    assert 1 <= asked <= 3


# -- trimming


async def test_a_worker_whose_clock_is_days_ahead_trims_nothing_that_is_young(
    log: EventLog, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(log, await new_saga(pool), 0, 900)
    await pumped(Relay(pool, redis, "me"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 8 * 86400)
    for stream in (streams.EVENTS, streams.COMMANDS, wa_events.STREAM):
        assert await trim(redis, stream, Retention(7 * 86400)) == 0
    assert len(await entries(redis, streams.EVENTS)) == 900


_OLD = """
for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '1000-' .. i, 'data', '{}') end
"""


async def test_everything_that_is_old_goes_at_once_however_much_it_is(redis: Redis) -> None:
    await redis.eval(_OLD, 1, streams.EVENTS, "50000")
    await redis.xadd(streams.EVENTS, {"data": json.dumps({"id": "new"})})
    await trim(redis, streams.EVENTS, Retention(3600))
    assert await redis.xlen(streams.EVENTS) < 200
    newest = (await entries(redis, streams.EVENTS))[-1]
    assert json.loads(newest[1][b"data"]) == {"id": "new"}


async def test_commands_are_kept_while_their_group_is_gone(redis: Redis) -> None:
    await redis.eval(_OLD, 1, streams.COMMANDS, "500")
    await trim(redis, streams.COMMANDS, Retention(3600))
    assert await redis.xlen(streams.COMMANDS) == 500


async def test_without_its_note_the_end_is_found_behind_what_is_no_event_of_a_saga(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, saga = await relayed(log, pool, redis, 3)
    for body in ("no JSON", *["{}"] * 150):
        await redis.xadd(streams.EVENTS, {"data": body})
    await redis.delete(relay_position.TOLD, relay_position.PROOF)
    await tell(log, saga, 3)
    await pumped(relay)
    sent = [fields[b"data"] for _, fields in await entries(redis, streams.EVENTS)]
    assert len([body for body in sent if b'"/evosaga"' in body]) == 4, "nothing is told twice"
