"""Appenders that pause, roll back and are killed, for whoever checks that no event is skipped.

They, and relays to be killed, may run in processes of their own.
"""

import asyncio
import contextlib
import random
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg

from evosaga.events import relay, streams
from evosaga.events.append import Append, StatusRow, write
from evosaga.events.database import TRANSIENT, Connection, Queryable, open_pool
from evosaga.events.model import StepStarted

Process: TypeAlias = asyncio.subprocess.Process
HASTY: Final = {"_IDLE_POLL": 0.003, "_FOLLOW": 0.1, "_LEASE_SECONDS": 0.5, "_BATCH": 40}
"""A relay that looks all the time, in small batches, and is soon succeeded."""
_ROOT: Final = Path(__file__).parents[2]
_ME: Final = (sys.executable, "-m", "tests.support.appenders")
_NAME: Final = "appender"
_SAVEPOINT: Final = 0.2
_ROLLBACK: Final = 0.15
_LONG: Final = 0.25
"""Share of transactions that stay open for up to a tenth of a second, while others commit."""


class TakenBack(Exception):
    """The transaction is rolled back on purpose."""


async def new_sagas(pool: Queryable, count: int = 1) -> list[UUID]:
    """Status rows without a history, as ``accept`` inserts them."""
    ids = [uuid.uuid4() for _ in range(count)]
    await pool.execute(
        """
        INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id,
            command_hash, correlation_id, next_sequence)
        SELECT id, 'create-integration', 1, 'running', id, id, 'h', id, 0
        FROM unnest($1::uuid[]) AS id
        """,
        ids,
    )
    return ids


async def appender(
    url: str, sagas: Sequence[UUID], seed: int, seconds: float, least: int = 0
) -> int:
    """Append to some of these sagas for so long, and so often at least; how often it was."""
    rng, until, committed = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until or committed < least:
        connection = await _connected(url)
        with contextlib.suppress(*TRANSIENT):  # killed, or chosen to end a deadlock
            while time.monotonic() < until or committed < least:
                with contextlib.suppress(TakenBack):
                    await _transaction(connection, rng, sagas)
                    committed += 1
        connection.terminate()
    return committed


async def _connected(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    while True:
        try:
            return await asyncpg.connect(url, server_settings={"application_name": _NAME})
        except TRANSIENT:
            await asyncio.sleep(0.05)


async def _transaction(connection: Connection, rng: random.Random, sagas: Sequence[UUID]) -> None:
    async with connection.transaction():
        if rng.random() < _SAVEPOINT:
            with contextlib.suppress(TakenBack):
                async with connection.transaction():
                    await _append(connection, rng, sagas)
                    raise TakenBack
        await _append(connection, rng, sagas)
        await asyncio.sleep(rng.uniform(0, 0.1 if rng.random() < _LONG else 0.004))
        if rng.random() < _ROLLBACK:
            raise TakenBack


async def _append(connection: Connection, rng: random.Random, sagas: Sequence[UUID]) -> None:
    chosen = rng.sample(sagas, rng.randint(1, 3))
    rows = await connection.fetch(
        "SELECT saga_id, next_sequence FROM evosaga.sagas WHERE saga_id = ANY($1)", chosen
    )
    batch = []
    for row in rows:
        at = row["next_sequence"]
        events = [
            StepStarted(step="s", attempt=at + n + 1, worker="w", lease_seconds=5)
            for n in range(rng.randint(1, 3))
        ]
        correlation = str(row["saga_id"])
        said = StatusRow("running")
        batch.append(Append(row["saga_id"], at, events, said, correlation, None, None))
    await write(connection, batch)


async def kill_some(pool: Queryable, seed: int, seconds: float, every: float) -> int:
    """Terminate a backend that has appended and not committed, now and then; how many."""
    rng, until, killed = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        await asyncio.sleep(rng.uniform(0, 2 * every))
        killed += await pool.fetchval(_KILL)
    return killed


_KILL: Final = f"""
SELECT count(pg_terminate_backend(pid)) FROM (
    SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND application_name = '{_NAME}' AND datname = current_database()
    ORDER BY random() LIMIT 1
) AS victim
"""


async def start(url: str, seed: int, seconds: float, connections: int) -> Process:
    """Appenders in a process of their own."""
    words = (url, str(100 * seed), str(seconds), str(connections))
    return await asyncio.create_subprocess_exec(*_ME, "append", *words, cwd=_ROOT)


async def start_relay(url: str, redis_url: str) -> Process:
    """A relay in a process of its own, as hasty as ``HASTY`` says."""
    name = uuid.uuid4().hex
    return await asyncio.create_subprocess_exec(*_ME, "relay", url, redis_url, name, cwd=_ROOT)


async def _append_all(url: str, seed: int, seconds: float, connections: int) -> None:
    admin = await _connected(url)
    rows = await admin.fetch("SELECT saga_id FROM evosaga.sagas ORDER BY saga_id")
    await admin.close()
    sagas = [row["saga_id"] for row in rows]
    numbers = range(connections)
    await asyncio.gather(*(appender(url, sagas, seed + n, seconds) for n in numbers))


async def _relay(url: str, redis_url: str, name: str) -> None:
    for setting, value in HASTY.items():
        setattr(relay, setting, value)
    await relay.Relay(await open_pool(url, size=2), streams.connect(redis_url), name).run()


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "relay":
        asyncio.run(_relay(*words))
    else:
        asyncio.run(_append_all(words[0], int(words[1]), float(words[2]), int(words[3])))
