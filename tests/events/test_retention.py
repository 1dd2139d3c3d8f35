"""What stays on a stream: by age and by bytes, and whatever a group has yet to read."""

from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.events.relay import Relay
from evosaga.events.retention import Retention, size_of, trim, trim_bytes
from evosaga.orchestrator.config.settings import SettingsError, load_settings
from evosaga.orchestrator.maintenance.redis_memory import StreamMemory, forecast

STREAM = "evosaga:events"
NODE = 8192
"""Bytes: Redis drops whole nodes of a stream, and says of its memory what it estimates."""
WEEK = 7 * 86400.0


async def fill(redis: Redis, number: int, *, spread: float = 0.0, stream: str = STREAM) -> None:
    """Entries of half a kilobyte, over so many seconds until now."""
    now = (await redis.time())[0] * 1000
    for at in range(0, number, 1000):
        pipeline = redis.pipeline(transaction=False)
        for n in range(at, min(at + 1000, number)):
            back = int(spread * 1000 * (1 - n / number))
            pipeline.xadd(stream, {"data": f"{n:0500}"}, id=f"{now - back}-{n}")
        await pipeline.execute()


@pytest.mark.parametrize("spread", [0.0, 60.0, 86400.0])
async def test_a_stream_is_kept_below_its_bytes_and_loses_the_oldest_only(
    redis: Redis, spread: float
) -> None:
    await fill(redis, 8000, spread=spread)
    full = await size_of(redis, STREAM)
    dropped = await trim(redis, STREAM, Retention(WEEK, full // 2))
    assert await size_of(redis, STREAM) <= full // 2 + NODE
    left: Any = await redis.xrange(STREAM)
    assert len(left) == 8000 - dropped
    if spread:  # of one burst nothing is older than the rest
        assert len(left) > 2000, "no more than is too much"
    newest = left[-1:]
    assert all(fields[b"data"] == b"%0500d" % 7999 for _, fields in newest)


async def test_a_flood_after_a_quiet_time_is_cut_down_as_well(redis: Redis) -> None:
    """A share of the time, whatever its size, is then less than the first of Redis's nodes."""
    now = (await redis.time())[0] * 1000
    for n in range(3):
        await redis.xadd(STREAM, {"data": "quiet"}, id=f"{now - 6 * 86_400_000 + n}-0")
    await fill(redis, 8000, spread=2.0)
    full = await size_of(redis, STREAM)
    assert await trim(redis, STREAM, Retention(WEEK, full // 2)) > 0
    assert await size_of(redis, STREAM) <= full // 2 + NODE
    assert await redis.xlen(STREAM) > 1000, "no more than is too much"
    [(_, newest)] = list(await redis.xrevrange(STREAM, count=1) or ())
    assert newest is not None
    assert newest[b"data"] == b"%0500d" % 7999


async def test_what_a_group_has_yet_to_read_stays_whatever_its_size(redis: Redis) -> None:
    await fill(redis, 3000, spread=3600.0)
    await redis.xgroup_create(STREAM, "slow", id="0")
    assert await trim(redis, STREAM, Retention(WEEK, 1000)) == 0
    read: Any = await redis.xreadgroup("slow", "one", {STREAM: ">"}, count=2000)
    assert await trim(redis, STREAM, Retention(WEEK, 1000)) == 0, "read and not acknowledged"
    [(_, entries)] = read
    await redis.xack(STREAM, "slow", *(id_ for id_, _ in entries))
    assert await trim(redis, STREAM, Retention(WEEK, 1000)) > 1500
    assert await redis.xlen(STREAM) >= 1000


async def test_without_a_number_of_bytes_only_age_counts(redis: Redis) -> None:
    await fill(redis, 2000, spread=7200.0)
    assert await trim(redis, STREAM, Retention(WEEK)) == 0
    assert await trim(redis, STREAM, Retention(3600.0)) > 500
    assert await trim_bytes(redis, "evosaga:nothing", 10) == 0


async def test_a_redis_that_was_away_is_caught_up_within_the_bytes_it_may_have(
    pool: Pool, redis: Redis
) -> None:
    """The relay trims while it tells, so the memory never passes what doctor announces."""
    number, most = 12_000, 1_200_000
    await pool.execute(_SAGA)
    await pool.execute(_EVENTS, number)
    catching_up = Relay(pool, redis, "me", keep=Retention(WEEK, most))
    highest, told = 0, 0
    while await catching_up.pump():
        highest, told = max(highest, await size_of(redis, STREAM)), told + 1
    assert told >= number // 1000 - 1
    about = await forecast(redis, [STREAM], Retention(WEEK, most), [await redis.info()])
    [one] = about.streams
    assert one.announced == most
    assert highest <= most
    newest = await redis.xrevrange(STREAM, count=1)
    last = await pool.fetchval("SELECT max(position) FROM evosaga.saga_events")
    assert newest
    assert last == number


def test_what_a_stream_will_have_follows_from_its_rate() -> None:
    def young(span: float, most: int = 0) -> int | None:
        return StreamMemory(STREAM, 1000, 500_000, span, Retention(WEEK, most)).announced

    assert young(60.0) is None, "a minute says nothing"
    assert young(60.0, most=10**6) == 10**6
    assert young(86400.0) == 3_500_000
    assert young(86400.0, most=10**6) == 10**6
    assert young(2 * WEEK) == 500_000, "it does not grow any more"


@pytest.mark.parametrize(
    ("name", "value"),
    [("EVENTS_KEEP", "59"), ("EVENTS_KEEP", "a week"), ("EVENTS_MOST_BYTES", "-1")],
)
def test_a_retention_that_is_none_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"EVOSAGA_{name}", value)
    with pytest.raises(SettingsError, match=f"EVOSAGA_{name}"):
        load_settings(_env_file=None)


_SAGA = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence)
VALUES ('00000000-0000-0000-0000-000000000001', 's', 1, 'completed', '', '', '', '', 1)
"""
_EVENTS = """
INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
SELECT '00000000-0000-0000-0000-000000000001', n, 'step.started',
    '{"step":"one","attempt":1,"worker":"w","lease_seconds":5}', n::text
FROM generate_series(1, $1::int) AS n
"""
