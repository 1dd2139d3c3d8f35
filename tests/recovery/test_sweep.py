"""The sweep at scale: what waits costs it nothing, and no step of a saga pays for that."""

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine import recovery
from evosaga.orchestrator.engine.lease import Lease
from tests.support.driving import create, outcome, publish
from tests.support.sampled import sampled

KNOWN = [("create-integration", 1)]
_WAITING = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, next_at, scheduled_at, owner)
SELECT md5($1::text || n)::uuid, 'create-integration', 1, 'running', $1::text || n, n::text, '',
    n::text, 3, now() + make_interval(secs => $3), now(), $4
FROM generate_series(1, $2::int) AS n
"""


async def waiting(
    pool: Pool, key: str, number: int, *, due_in: float = 3600.0, owner: str | None = None
) -> None:
    await pool.execute(_WAITING, key, number, due_in, owner)


async def taken(
    pool: Pool, *, room: int = 500, watched: str | None = None, steady: bool = True
) -> int:
    rows = await recovery.look(pool, "me", room, KNOWN, watched=watched, steady=steady)
    return len(rows)


@pytest.mark.parametrize("number", sampled([5_000, 20_000], keep=[5_000]))
async def test_no_sweep_reads_the_sagas_whose_time_has_not_come(pool: Pool, number: int) -> None:
    await waiting(pool, "later", number)
    await waiting(pool, "driven", number // 4, owner="alive")
    await Lease(pool, "alive").beat()
    await pool.execute("VACUUM ANALYZE evosaga.sagas")
    plan = await pool.fetch(
        f"EXPLAIN (ANALYZE, BUFFERS) {recovery._TAKE}",
        *("me", 500, 5.0, [], ["create-integration"], [1], True, "nobody", [], [], 500),
    )
    lines = [row[0] for row in plan]
    assert not [line for line in lines if "Seq Scan on sagas" in line]
    [buffers, *_] = [line for line in lines if "Buffers: shared" in line]
    assert int(buffers.partition("hit=")[2].split()[0]) < 100, buffers


@pytest.mark.parametrize(
    ("row", "look", "found"),
    [
        ({"due_in": -1.0}, {}, True),
        ({"due_in": 60.0}, {}, False),
        ({"due_in": 60.0, "owner": "gone"}, {}, True),
        ({"due_in": 60.0, "owner": "gone"}, {"steady": False}, True),
        ({"due_in": 60.0, "owner": "silent"}, {}, True),
        ({"due_in": 60.0, "owner": "silent"}, {"steady": False}, False),
        ({"due_in": -4.0, "owner": "alive"}, {"watched": "alive"}, False),
        ({"due_in": -6.0, "owner": "alive"}, {"watched": "alive"}, True),
        ({"due_in": -6.0, "owner": "alive"}, {"watched": "silent"}, False),
    ],
)
async def test_what_is_due_is_found(
    pool: Pool, row: dict[str, object], look: dict[str, object], found: bool
) -> None:
    for name in ("me", "alive", "silent"):
        await Lease(pool, name, ttl=60).beat()
    await pool.execute(
        "UPDATE evosaga.workers SET lease_until = now() - interval '1 s' WHERE worker_id = 'silent'"
    )
    await waiting(pool, "one", 1, **row)  # type: ignore[arg-type]
    assert await taken(pool, **look) == found  # type: ignore[arg-type]
    assert await taken(pool, **look) == 0, "it has an owner now"  # type: ignore[arg-type]


async def test_what_is_due_longest_is_taken_first_and_no_more_than_there_is_room_for(
    pool: Pool,
) -> None:
    await waiting(pool, "late", 30, due_in=-10)
    await waiting(pool, "later", 30, due_in=-5)
    assert await taken(pool, room=40) == 40
    left = await pool.fetchval(
        "SELECT count(*) FROM evosaga.sagas WHERE owner IS NULL AND business_key LIKE 'later%'"
    )
    assert left == 20


async def test_what_no_worker_here_knows_does_not_hide_what_is_due(pool: Pool) -> None:
    await waiting(pool, "strange", 600, due_in=-10)
    await pool.execute("UPDATE evosaga.sagas SET version = 7")
    await waiting(pool, "known", 1, due_in=-5)
    assert await taken(pool) == 1


async def test_a_step_leaves_the_indexes_of_its_saga_alone(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    """Both columns stay empty while a worker drives it, whatever happens to its next time."""
    await waiting(pool, "one", 1, owner="me")
    changed = await pool.fetchrow(
        "UPDATE evosaga.sagas SET next_at = now(), scheduled_at = now(), status = 'compensating' "
        "RETURNING due_at, waits_since"
    )
    assert changed is not None
    assert tuple(changed) == (None, None)
    let_go = await pool.fetchrow(
        "UPDATE evosaga.sagas SET owner = NULL RETURNING due_at = next_at AS due, "
        "waits_since = scheduled_at AS since"
    )
    assert let_go is not None
    assert tuple(let_go) == (True, True)
    over = await pool.fetchrow(
        "UPDATE evosaga.sagas SET status = 'failed' RETURNING due_at, waits_since"
    )
    assert over is not None
    assert tuple(over) == (None, None)
    async with running_worker(settings):
        await outcome(pool, await publish(redis, create()), 60)
    left = "SELECT count(*) FROM evosaga.sagas WHERE due_at IS NOT NULL"
    assert await pool.fetchval(left) == 0
