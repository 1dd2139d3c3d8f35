"""A log that lacks what was published is noticed, and nothing is published until a decision."""

import asyncio
import json
import uuid
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import log_loss, relay_position, streams
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.log_loss import LogWentBack
from evosaga.events.relay import Relay
from evosaga.events.republish import republish_from
from evosaga.orchestrator.maintenance.rejected_sagas import RejectedSagaArchive
from tests.events.test_relay import new_saga, pumped, relayed, tell, told


async def go_back(pool: Pool, position: int, *, numbers_too: bool = True) -> None:
    """What a restore does (``numbers_too``), and a promotion, which skips some numbers."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL evosaga.archiving = 'on'")
        await connection.execute("DELETE FROM evosaga.saga_events WHERE position > $1", position)
        await connection.execute(
            "UPDATE evosaga.sagas AS saga SET next_sequence = (SELECT count(*)"
            " FROM evosaga.saga_events AS event WHERE event.saga_id = saga.saga_id)"
        )
        await connection.execute(
            "UPDATE evosaga.relay SET position = least(position, $1)", position
        )
        if numbers_too:
            await connection.execute(
                "SELECT setval(pg_get_serial_sequence('evosaga.saga_events', 'position'), $1)",
                position,
            )


async def published(redis: Redis) -> list[dict[str, Any]]:
    return [dict(event) for event in await told(redis)]


@pytest.mark.parametrize("leader", ["the same", "another"])
@pytest.mark.parametrize("numbers_too", [True, False], ids=["restored", "promoted"])
@pytest.mark.parametrize("appended", [0, 1, 9], ids=["nothing", "less", "more"])
async def test_it_is_noticed_whatever_was_appended_since_and_whoever_leads(
    log: EventLog, pool: Pool, redis: Redis, leader: str, numbers_too: bool, appended: int
) -> None:
    relay, saga = await relayed(log, pool, redis, 6)
    assert (await log_loss.notice(pool, redis)).loss is None
    await go_back(pool, 2, numbers_too=numbers_too)
    if appended:
        await tell(log, saga, 2, appended, note="x")
    if leader == "another":
        await relay.resign()
        relay = Relay(pool, redis, "heir")
    before = await published(redis)
    await pumped(relay)
    await pumped(relay)
    loss = await log_loss.recorded(pool)
    assert loss is not None
    assert loss.event == f"{saga}:5"
    assert await published(redis) == before, "nothing was published after it"

    assert await log_loss.begin_epoch(pool, redis) == 1
    await tell(log, saga, 2 + appended, 1, note="y")
    await pumped(relay)
    assert await log_loss.recorded(pool) is None
    after = (await published(redis))[len(before) :]
    assert [event["id"] for event in after] == [f"{saga}:{n}" for n in range(2, 3 + appended)]
    assert {event["epoch"] for event in after} == {1}
    assert {event.get("epoch") for event in before} == {None}


async def test_a_stream_that_was_trimmed_leaves_the_note_as_proof(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, _ = await relayed(log, pool, redis, 3)
    await redis.xtrim(streams.EVENTS, maxlen=0, approximate=False)
    await go_back(pool, 1)
    await relay.resign()
    relay = Relay(pool, redis, "heir")
    await pumped(relay)
    loss = await log_loss.recorded(pool)
    assert (loss and loss.told_up_to, loss and loss.newest, loss and loss.event) == (3, 1, None)
    await log_loss.begin_epoch(pool, redis)
    await pumped(relay)
    assert await log_loss.recorded(pool) is None


@pytest.mark.parametrize(
    ("leader", "notices"), [("the same", 250), ("another", 250), ("the same", 0)]
)
async def test_a_loss_is_noticed_where_no_saga_is_among_the_newest_entries(
    log: EventLog, pool: Pool, redis: Redis, leader: str, notices: int
) -> None:
    relay = Relay(pool, redis, "relay")
    saga = await new_saga(pool)
    await tell(log, saga, 0, 3)
    await pool.execute("UPDATE evosaga.relay SET epoch = 4")
    await pumped(relay)
    if notices:
        notice = {"id": str(uuid.uuid4()), "source": "/evosaga", "type": "integration.qr_updated"}
        pipeline = redis.pipeline(transaction=False)
        for _ in range(notices):
            pipeline.xadd(streams.EVENTS, {"data": json.dumps(notice)})
        await pipeline.execute()
    else:
        await redis.xtrim(streams.EVENTS, maxlen=0, approximate=False)
    await go_back(pool, 1)
    await tell(log, saga, 1, 4, note="x")
    await pool.execute("UPDATE evosaga.relay SET epoch = 4")
    if leader == "another":
        await relay.resign()
        relay = Relay(pool, redis, "heir")
    await pumped(relay)
    loss = await log_loss.recorded(pool)
    assert (loss and loss.event) == f"{saga}:2"
    await pool.execute("UPDATE evosaga.relay SET epoch = 0")
    assert await log_loss.begin_epoch(pool, redis) == (5 if notices else 1)


@pytest.mark.parametrize("leader", ["the same", "another"])
async def test_an_archived_saga_that_was_the_newest_of_all_is_no_loss_and_a_restore_after_it_is(
    log: EventLog, pool: Pool, redis: Redis, leader: str
) -> None:
    relay = Relay(pool, redis, "relay")
    await tell(log, await new_saga(pool), 0, 2)
    rejected = await new_saga(pool)
    await tell(log, rejected, 0, 1)
    await pumped(relay)
    await redis.xtrim(streams.EVENTS, maxlen=0, approximate=False)
    await pool.execute(
        "UPDATE evosaga.sagas SET status = 'rejected', created_at = now() - interval '1 hour'"
        " WHERE saga_id = $1",
        rejected,
    )
    assert await RejectedSagaArchive(pool, "w", keep=60.0, most=1).archive() == 1
    if leader == "another":
        await relay.resign()
        relay = Relay(pool, redis, "heir")
    await pumped(relay)
    assert await log_loss.recorded(pool) is None
    await go_back(pool, 1)
    await relay.resign()
    await pumped(Relay(pool, redis, "third"))
    loss = await log_loss.recorded(pool)
    assert (loss and loss.told_up_to, loss and loss.newest) == (3, 1)


async def test_two_who_decide_at_once_begin_one_epoch(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, saga = await relayed(log, pool, redis, 3)
    await go_back(pool, 1)
    await pumped(relay)
    assert await log_loss.recorded(pool) is not None
    begun = await asyncio.gather(*(log_loss.begin_epoch(pool, redis) for _ in range(4)))
    assert begun == [1, 1, 1, 1]
    await tell(log, saga, 1, 2)
    await pumped(relay)
    assert await log_loss.begin_epoch(pool, redis) == 1
    assert (await relay_position.read(redis)).up_to == 3, "nobody is sent back for nothing"


async def test_a_log_that_forgot_an_epoch_begins_one_above_it(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, saga = await relayed(log, pool, redis, 2)
    for epoch in (1, 2):
        await pool.execute("UPDATE evosaga.relay SET went_back_at = now()")
        await log_loss.begin_epoch(pool, redis)
        await tell(log, saga, epoch + 1)
        await pumped(relay)
    await pool.execute("UPDATE evosaga.relay SET epoch = 0")
    await go_back(pool, 2)
    await pumped(relay)
    assert await log_loss.recorded(pool) is not None
    assert await log_loss.begin_epoch(pool, redis) == 3


async def test_what_is_no_loss_is_not_taken_for_one(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    """Redis that lost everything, events of others, and what was archived."""
    relay, _ = await relayed(log, pool, redis, 3)
    somebody = {"id": f"{uuid.uuid4()}:0", "source": "/others", "time": "now", "type": "x"}
    for body in (json.dumps(somebody), "no JSON", "[1]", json.dumps({"id": "x:1"})):
        await redis.xadd(streams.EVENTS, {"data": body})
    await pumped(relay)
    await redis.flushall()
    await pumped(relay)
    gone = await new_saga(pool)
    await tell(log, gone, 0, 1)
    await pumped(relay)
    await pool.execute("INSERT INTO evosaga.refused (saga_id, command_hash) VALUES ($1, 'h')", gone)
    await go_back(pool, 3, numbers_too=False)
    await pool.execute("UPDATE evosaga.relay SET position = 4")
    await pumped(relay)
    assert await log_loss.recorded(pool) is None


async def test_while_it_waits_for_a_decision_nothing_is_republished_or_archived(
    log: EventLog, pool: Pool, redis: Redis
) -> None:
    relay, _ = await relayed(log, pool, redis, 3)
    await relay.resign()  # else whoever tells again waits until its lease is over
    old = await new_saga(pool)
    await pool.execute(
        "UPDATE evosaga.sagas SET status = 'rejected', created_at = now() - interval '1 hour'"
        " WHERE saga_id = $1",
        old,
    )
    await go_back(pool, 1)
    assert (await log_loss.notice(pool, redis)).loss is not None
    since = await pool.fetchval("SELECT now() - interval '1 hour'")
    with pytest.raises(LogWentBack, match="evosaga recover"):
        await republish_from(pool, redis, "me", since, lambda *_: None)
    begun = asyncio.Event()
    await pool.execute("UPDATE evosaga.relay SET went_back_at = NULL, position = 3")
    again = republish_from(pool, redis, "me", since, lambda *_: begun.set())
    with pytest.raises(LogWentBack, match="evosaga recover"):  # noticed while it is at work
        await asyncio.wait_for(again, 10)
    assert begun.is_set()
    archive = RejectedSagaArchive(pool, "w", keep=60.0, most=1)
    assert await archive.archive() == 0
    await log_loss.begin_epoch(pool, redis)
    assert await archive.archive() == 1
    assert (await relay_position.read(redis)).up_to == 1
