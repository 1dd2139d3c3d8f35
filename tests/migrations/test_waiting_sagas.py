"""Sagas that wait while revision 0012 comes: filled beforehand, in batches, around what is held."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from evosaga import migrations
from evosaga.migrations import grants, waiting_sagas
from tests.conftest import Servers

WAITING = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, next_at, owner)
SELECT gen_random_uuid(), 's', 1, 'running', n::text, n::text, '', '', 1,
    CASE WHEN n % 3 > 0 THEN now() END, CASE WHEN n % 10 = 0 THEN 'w' END
FROM generate_series(1, 100) AS n
"""
LEFT = """
SELECT count(*) FROM evosaga.sagas
WHERE owner IS NULL AND (waits_since IS NULL OR due_at IS DISTINCT FROM next_at)
"""
HELD = "SELECT count(*) FROM evosaga.sagas WHERE owner IS NOT NULL AND waits_since IS NOT NULL"


@pytest.fixture
async def before(servers: Servers) -> AsyncIterator[str]:
    """A database as revision 0011 left it, with sagas that wait."""
    name = f"waiting_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(servers.postgres)
    await admin.execute(f"CREATE DATABASE {name}")
    url = servers.database(name)
    try:
        await migrations.migrate(url, "0011")
        connection = await asyncpg.connect(url)
        await grants.close(connection)
        await connection.execute(WAITING)
        await connection.close()
        yield url
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def test_what_waits_is_filled_before_the_migration_locks_anything(
    before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_sagas, "_BATCH", 7)
    monkeypatch.setattr(waiting_sagas, "_TRIES", 2)
    holder, other = await asyncpg.connect(before), await asyncpg.connect(before)
    holding = holder.transaction()
    await waiting_sagas.keep(other)
    await holding.start()
    held = await holder.fetch(
        "SELECT saga_id FROM evosaga.sagas WHERE owner IS NULL LIMIT 3 FOR UPDATE"
    )
    async with asyncio.timeout(10):
        await waiting_sagas.fill(other)
    assert await other.fetchval(LEFT) == len(held), "those that somebody holds, and no others"
    freed = asyncio.create_task(_free_soon(holding))
    monkeypatch.setattr(waiting_sagas, "_TRIES", 100)
    async with asyncio.timeout(10):
        await waiting_sagas.fill(other)
    await freed
    assert await other.fetchval(LEFT) == 0
    assert await other.fetchval(HELD) == 0
    # What was done beforehand is not done again: a reader in the middle of it holds nothing up.
    async with holder.transaction():
        await holder.execute("LOCK TABLE evosaga.sagas IN ACCESS SHARE MODE")
        await migrations.migrate(before)
    assert await other.fetchval(LEFT) == 0
    for one in (holder, other):
        await one.close()


async def _free_soon(holding: asyncpg.transaction.Transaction) -> None:
    await asyncio.sleep(0.3)
    await holding.rollback()


async def test_an_upgrade_fills_them_and_a_step_of_an_older_worker_keeps_them(before: str) -> None:
    await migrations.migrate(before)
    connection = await asyncpg.connect(before)
    assert await connection.fetchval(LEFT) == 0
    assert await connection.fetchval(HELD) == 0
    await connection.execute("UPDATE evosaga.sagas SET owner = NULL, next_at = now()")
    assert await connection.fetchval(LEFT) == 0
    await connection.execute("UPDATE evosaga.sagas SET owner = 'w'")
    assert await connection.fetchval(HELD) == 0
    await connection.close()
