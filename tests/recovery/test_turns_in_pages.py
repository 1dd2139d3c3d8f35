"""A sweep past sagas that wait behind others looks at a page of them, and misses none."""

from uuid import UUID

import pytest

from evosaga.events import turns
from evosaga.events.database import Pool
from evosaga.events.turns import PAGE, Rotation
from tests.support.sampled import sampled

KNOWN = [("create-integration", 1)]
NUMBER = 3 * PAGE
_AHEAD = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, owner, scheduled_at)
SELECT md5('ahead' || n)::uuid, 'create-integration', 1, 'running', 'key/' || n, n::text, '',
    n::text, 3, 'another', now()
FROM generate_series(1, $1::int) AS n
"""
_BEHIND = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, behind, code, message, scheduled_at)
SELECT md5('behind' || n)::uuid, 'create-integration', 1, 'running',
    'key/' || n || '/behind/' || md5('behind' || n)::uuid, n::text, '', n::text, 1,
    md5('ahead' || n)::uuid, 'waiting', 'waits', now()
FROM generate_series(1, $1::int) AS n
"""


async def fill(pool: Pool, number: int = NUMBER) -> None:
    """So many sagas at work, and one behind each of them."""
    await pool.execute(_AHEAD, number)
    await pool.execute(_BEHIND, number)
    await pool.execute("VACUUM ANALYZE evosaga.sagas")


async def end(pool: Pool, *numbers: int, status: str = "completed") -> set[UUID]:
    """End what is ahead; the ids of these."""
    rows = await pool.fetch(
        "UPDATE evosaga.sagas SET status = $2, owner = NULL, updated_at = now() "
        "WHERE saga_id IN (SELECT md5('ahead' || n)::uuid FROM unnest($1::int[]) AS n) "
        "RETURNING saga_id",
        list(numbers),
        status,
    )
    return {row["saga_id"] for row in rows}


async def sweep(pool: Pool, rotation: Rotation, most: int = 500) -> int:
    return len(await turns.come(pool, "me", most, KNOWN, rotation))


@pytest.mark.parametrize("pages", sampled([6, 20], keep=[6]))
async def test_a_sweep_reads_one_page_of_what_waits_whatever_its_number(
    pool: Pool, pages: int
) -> None:
    await fill(pool, pages * PAGE)
    names, versions = zip(*KNOWN, strict=True)
    plan = await pool.fetch(
        f"EXPLAIN (ANALYZE, BUFFERS) {turns._PAGE}", None, [], list(names), list(versions)
    )
    lines = [row[0] for row in plan]
    assert not [line for line in lines if "Seq Scan on sagas" in line], lines
    [buffers, *_] = [line for line in lines if "Buffers: shared" in line]
    # Of each its index entry, its row, and that of the one before it by its primary key.
    assert int(buffers.partition("hit=")[2].split()[0]) < 10 * PAGE, buffers


async def test_a_rotation_comes_to_everyone_whose_turn_it_is(pool: Pool) -> None:
    await fill(pool)
    every = range(1, NUMBER + 1, 7)
    await end(pool, *every)
    rotation, found = Rotation(), []
    for _ in range(NUMBER // PAGE):
        found.append(await sweep(pool, rotation))
    assert sum(found) == len(every)
    assert all(found), "each page had some"
    assert await sweep(pool, rotation) == 0


async def test_who_is_behind_what_ended_here_is_taken_at_once_wherever_the_rotation_is(
    pool: Pool,
) -> None:
    await fill(pool)
    rotation = Rotation(after=UUID(int=2**128 - 1))
    rotation.ended = await end(pool, 3, 5) | await end(pool, 8, status="failed")
    assert await sweep(pool, rotation) == 3
    assert not rotation.ended


async def test_what_there_is_no_room_for_is_not_forgotten(pool: Pool) -> None:
    await fill(pool, 10)
    rotation = Rotation(after=UUID(int=2**128 - 1))
    rotation.ended = await end(pool, *range(1, 6))
    assert await sweep(pool, rotation, most=2) == 2
    rotation.after = UUID(int=2**128 - 1)
    assert await sweep(pool, rotation, most=10) == 3
