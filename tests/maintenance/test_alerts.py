"""Alerts: opened with what causes them, one for many, told late enough, and over when it is."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import alerts
from evosaga.events.alerts import Condition
from evosaga.events.append import PARKED, Append, StatusRow
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.model import SagaFailed
from evosaga.orchestrator.domain import Domain, Domains, domain
from evosaga.orchestrator.maintenance.alerts import outbox
from evosaga.orchestrator.maintenance.alerts.monitor import AlertMonitor, Seen, domain_monitors
from evosaga.orchestrator.maintenance.alerts.view import AlertView, listing
from evosaga.orchestrator.queries import conditions
from evosaga.orchestrator.whatsapp.domain import WHATSAPP
from evosaga.sagas.definition import DefinitionError

_SAGA = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, owner, step, code)
SELECT id, 'room.book', 1, $2, id::text, id::text, '', id::text, 0, 'me', 'charge', $3
FROM unnest($1::uuid[]) AS id
"""


async def sagas(pool: Pool, number: int, status: str, code: str | None = None) -> list[uuid.UUID]:
    ids = [uuid.uuid4() for _ in range(number)]
    await pool.execute(_SAGA, ids, status, code)
    return ids


def monitor(pool: Pool, redis: Redis) -> AlertMonitor:
    """One that looks at everything that is not a domain's."""

    async def look() -> Seen:
        found = await conditions.of_postgres(pool)
        streamed, unseen = await conditions.of_redis(redis)
        return Seen([*found, *streamed], [one for one in conditions.CODES if one not in unseen])

    return AlertMonitor(pool, "me", look)


async def open_alerts(pool: Pool, code: str) -> list[AlertView]:
    return [one for one in await listing(pool, resolved=False) if one.code == code]


async def later(pool: Pool, seconds: float) -> None:
    """As if everything that is known had been known for so much longer."""
    await pool.execute(
        "UPDATE evosaga.alerts SET opened_at = opened_at - $1::interval,"
        " seen_at = seen_at - $1::interval, fires_at = fires_at - $1::interval,"
        " announced_at = announced_at - $1::interval",
        timedelta(seconds=seconds),
    )


async def alive(pool: Pool) -> None:
    """There is a worker."""
    await pool.execute(
        "INSERT INTO evosaga.workers (worker_id, lease_until) VALUES ('w', now() + interval '1 h')"
    )


async def messages(pool: Pool) -> list[str]:
    rows = await pool.fetch("SELECT type FROM evosaga.deliveries ORDER BY id")
    return [row["type"] for row in rows]


def parks(id_: uuid.UUID) -> Append[Any]:
    failed = SagaFailed(step="charge", direction="forward", code="declined", message="no")
    return Append(
        id_, 0, [failed], StatusRow(PARKED, "charge", code="declined"), str(id_), None, None
    )


async def test_a_saga_that_parks_opens_its_alert_in_the_same_transaction(pool: Pool) -> None:
    log = EventLog(pool)
    running = asyncio.create_task(log.run())
    try:
        await asyncio.gather(*(log.append(parks(id_)) for id_ in await sagas(pool, 3, "running")))
    finally:
        running.cancel()
    [alert] = await open_alerts(pool, "parked")
    assert (alert.key, alert.reason) == ("parked/room.book/declined", "declined")
    together = await pool.fetchval(
        "SELECT bool_or(a.opened_at = e.recorded_at)"
        " FROM evosaga.alerts AS a, evosaga.saga_events AS e"
    )
    assert together, "it has the time of the transaction that parked the first of them"


async def test_what_loses_its_place_in_the_log_opens_none(pool: Pool) -> None:
    [id_] = await sagas(pool, 1, "running")
    await pool.execute("UPDATE evosaga.sagas SET next_sequence = 5")
    log = EventLog(pool)
    running = asyncio.create_task(log.run())
    with pytest.raises(Exception, match="past sequence"):
        await log.append(parks(id_))
    running.cancel()
    assert await open_alerts(pool, "parked") == []


async def test_five_hundred_parked_at_once_are_one_alert_that_says_so(
    pool: Pool, redis: Redis
) -> None:
    await alive(pool)
    ids = await sagas(pool, 500, "failed", "declined")
    for some in (ids[:200], ids[200:]):
        async with pool.acquire() as connection, connection.transaction():
            await alerts.parked(connection, some)
    watch = monitor(pool, redis)
    await watch.round()
    await outbox.announce(pool, ["ops"], "runbook.md")
    assert await messages(pool) == [], "more of them may come"
    await later(pool, 60)
    await outbox.announce(pool, ["ops"], "runbook.md")
    await outbox.announce(pool, ["ops"], "runbook.md")
    assert await messages(pool) == ["alert.firing"]
    [alert] = await open_alerts(pool, "parked")
    assert alert.count == 500
    assert alert.message == "500 sagas room.book are parked: declined"
    body = await pool.fetchval("SELECT body::jsonb -> 'data' ->> 'count' FROM evosaga.deliveries")
    assert body == "500"


async def test_more_of_them_are_told_later_and_no_sooner(pool: Pool, redis: Redis) -> None:
    watch = monitor(pool, redis)
    await sagas(pool, 2, "failed", "declined")
    await watch.round()
    await later(pool, 60)
    await outbox.announce(pool, ["ops"], "runbook.md")
    await sagas(pool, 3, "failed", "declined")
    await watch.round()
    await outbox.announce(pool, ["ops"], "runbook.md")
    assert len([one for one in await messages(pool) if one == "alert.firing"]) == 2, "and workers"
    await later(pool, 301)
    await watch.round()
    await outbox.announce(pool, ["ops"], "runbook.md")
    bodies = await pool.fetch(
        "SELECT body::jsonb -> 'data' ->> 'count' AS n FROM evosaga.deliveries"
        " WHERE body::jsonb -> 'data' ->> 'code' = 'parked' ORDER BY id"
    )
    assert [row["n"] for row in bodies] == ["2", "5"]


async def test_it_is_over_when_none_is_parked_any_more(pool: Pool, redis: Redis) -> None:
    watch = monitor(pool, redis)
    await sagas(pool, 1, "failed", "declined")
    await watch.round()
    await later(pool, 60)
    await outbox.announce(pool, ["ops"], "runbook.md")
    await pool.execute("UPDATE evosaga.sagas SET status = 'compensated'")
    await watch.round()
    await later(pool, 30)
    await watch.round()
    assert await open_alerts(pool, "parked") == []
    await outbox.announce(pool, ["ops"], "runbook.md")
    await outbox.announce(pool, ["ops"], "runbook.md")
    told = await messages(pool)
    assert told.count("alert.resolved") == 1


async def test_what_was_over_before_it_was_told_is_forgotten(pool: Pool, redis: Redis) -> None:
    watch = monitor(pool, redis)
    await watch.round()
    [alert] = await open_alerts(pool, "workers")
    assert (alert.state, alert.severity) == ("pending", "critical")
    await alive(pool)
    await pool.execute(
        "UPDATE evosaga.alerts SET seen_at = now() - interval '1 min',"
        " fires_at = now() + interval '1 min'"
    )
    await watch.round()
    assert await listing(pool, resolved=True) == []


async def test_a_redis_that_is_away_ends_no_alert_about_what_is_in_it(
    pool: Pool, redis: Redis
) -> None:
    await alerts.open_now(pool, [Condition("dead_letters", "dead_letters", "1 waits")])
    await later(pool, 600)
    away = Redis.from_url("redis://127.0.0.1:1")
    watch = monitor(pool, away)
    await watch.round()
    await away.aclose()
    assert len(await open_alerts(pool, "dead_letters")) == 1
    [alert] = await open_alerts(pool, "redis_away")
    assert "evosaga" not in alert.key
    await monitor(pool, redis).round()
    assert await open_alerts(pool, "dead_letters") == [], "there is none on the stream"


async def test_what_a_process_reports_is_over_only_when_all_have_been_silent_for_long(
    pool: Pool,
) -> None:
    found: Sequence[Condition] = [Condition("breaker/berlin", "breaker", "open", after=0.0)]
    await alerts.observe(pool, found, of_process=True)
    await later(pool, 30)
    await alerts.resolve(pool, [], [], settled=True)
    assert len(await open_alerts(pool, "breaker")) == 1
    await later(pool, 60)
    await alerts.resolve(pool, [], [], settled=False)
    assert len(await open_alerts(pool, "breaker")) == 1, "a new leader has heard of nobody yet"
    await alerts.resolve(pool, [], [], settled=True)
    assert await open_alerts(pool, "breaker") == []


async def test_a_job_that_can_not_look_twice_in_a_row_is_an_alert(pool: Pool, redis: Redis) -> None:
    await pool.execute(
        "INSERT INTO evosaga.chores (name, next_at, last_result) VALUES"
        ' (\'reconcile\', now(), \'{"aborted": "the list is cut", "unfinished_in_a_row": 2}\'),'
        ' (\'health\', now(), \'{"aborted": "once", "unfinished_in_a_row": 1}\')'
    )
    await monitor(pool, redis).round()
    [alert] = await open_alerts(pool, "chores")
    assert "reconcile" in alert.message
    assert "the list is cut" in alert.message


async def test_a_full_redis_is_an_alert(pool: Pool, own_redis: Redis) -> None:
    await own_redis.config_set("maxmemory", "1mb")
    await own_redis.config_set("maxmemory-policy", "noeviction")
    await monitor(pool, own_redis).round()
    [alert] = await open_alerts(pool, "redis_full")
    assert "of its memory" in alert.message
    assert alert.severity == "critical"


async def test_each_domain_has_conditions_and_one_that_fails_hides_no_other(pool: Pool) -> None:
    async def full(_: Pool) -> list[Condition]:
        return [Condition("hotel/full", "hotel_full", "no room is left")]

    async def broken(_: Pool) -> list[Condition]:
        raise ValueError("a fault of theirs")

    hotel: Domain[object] = replace(domain("hotel"), conditions=full, codes=("hotel_full",))
    cinema: Domain[object] = replace(domain("cinema"), conditions=broken, codes=("cinema_dark",))
    found = [
        Condition("cinema/dark", "cinema_dark", "the lamp is out"),
        Condition("hotel/dirty", "hotel_full", "it was true once"),
    ]
    await alerts.observe(pool, found)
    await later(pool, 60)
    monitors = domain_monitors(Domains.of(hotel, cinema, domain("spa")).conditions, pool, "me")
    assert [one.task for one in monitors] == ["alerts/hotel_full", "alerts/cinema_dark"]
    await asyncio.gather(*(one.round() for one in monitors), return_exceptions=True)
    assert [one.message for one in await open_alerts(pool, "hotel_full")] == ["no room is left"]
    assert await open_alerts(pool, "cinema_dark"), "nobody could say whether it is over"


async def test_who_leads_without_a_domain_ends_no_alert_of_it(pool: Pool, redis: Redis) -> None:
    await alerts.observe(pool, [Condition("phones/down", "phones", "1 integration is away")])
    await later(pool, 600)
    await monitor(pool, redis).round()
    assert len(await open_alerts(pool, "phones")) == 1
    with_whatsapp = domain_monitors(Domains.of(WHATSAPP).conditions, pool, "me")
    await asyncio.gather(*(one.round() for one in with_whatsapp))
    assert await open_alerts(pool, "phones") == [], "no phone is away"


def test_conditions_whose_alerts_could_never_end_are_refused() -> None:
    async def full(_: Pool) -> list[Condition]:
        return []

    with pytest.raises(DefinitionError, match="hotel has conditions and no codes"):
        replace(domain("hotel"), conditions=full)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("LOCK TABLE evosaga.alerts IN ACCESS EXCLUSIVE MODE", "ROLLBACK"),
        (
            "ALTER TABLE evosaga.alerts RENAME TO elsewhere; COMMIT",
            "ALTER TABLE evosaga.elsewhere RENAME TO alerts",
        ),
    ],
)
async def test_an_alert_that_can_not_be_written_keeps_no_saga_from_being_parked(
    pool: Pool, broken: str, mended: str
) -> None:
    [id_] = await sagas(pool, 1, "running")
    log = EventLog(pool)
    running = asyncio.create_task(log.run())
    try:
        async with pool.acquire() as other:
            await other.execute("BEGIN")
            await other.execute(broken)
            try:
                await asyncio.wait_for(log.append(parks(id_)), 5)
            finally:
                await other.execute(mended)
    finally:
        running.cancel()
    assert await pool.fetchval("SELECT status FROM evosaga.sagas") == PARKED
    assert await pool.fetchval("SELECT count(*) FROM evosaga.saga_events") == 1
