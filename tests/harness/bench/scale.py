"""What upkeep and recovery cost at a million: a health round, and a sweep past what waits."""

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any, Final

from evosaga.events import turns
from evosaga.events.database import open_pool
from evosaga.migrations.search_indexes import INDEXES, made
from evosaga.orchestrator.engine import recovery
from tests.harness.bench.measures import Result, Say
from tests.harness.bench.rig import Database, Rig, Slow, end, spawn

_SERVERS: Final = 50
_CHUNK: Final = 50_000
MOST_MEMORY: Final = 300.0
"""MB that a process with a health round may have."""
LONGEST_STILL: Final = 50.0
"""Milliseconds that its event loop may be held up."""
LONGEST_SWEEP: Final = 5.0
"""Milliseconds of a sweep that finds nothing due."""
_BEHIND_OTHERS: Final = 10_000
_TOLD: Final = (
    "seconds",
    "cpu seconds",
    "MB at most",
    "longest still ms",
    "longest callback ms wall",
    "longest callback ms CPU",
)


async def health(rig: Rig, count: int, say: Say) -> list[Result]:
    """(l): one round over so many integrations on 50 servers, and a tenth of them beside it."""
    told: dict[int, dict[str, Any]] = {}
    compared: dict[str, dict[str, Any]] = {}
    for number in (count // 10, count):
        database = await rig.fresh()
        say(f"filling in {number:,} integrations on {_SERVERS} servers")
        await fill_integrations(database, number, _SERVERS)
        told[number] = await upkeep_round(rig, database, number, _SERVERS, rounds=2)
        for what in ("orphans", "reconcile"):
            one = await upkeep_round(rig, database, number, _SERVERS, what=what, rounds=1)
            say(f"{what} over {number:,}: {json.dumps(one)}")
            compared[f"{number:,}: {what}"] = one
        await database.connection.close()
    few, many = told[count // 10], told[count]
    values = {
        f"{number:,}: {name}": round(float(one[name]), 1)
        for number, one in told.items()
        for name in (*_TOLD, "99.9 % still ms")
    }
    say(f"a health round over {count:,}: {json.dumps(many)}")
    growth = many["MB at most"] / few["MB at most"]
    target = f"under {MOST_MEMORY:.0f} MB"
    met = many["MB at most"] < MOST_MEMORY and many["connected"] == count
    return [
        Result("l", "a health round", values, "", growth, target, met),
        _comparisons(compared, target),
    ]


def _comparisons(compared: dict[str, dict[str, Any]], target: str) -> Result:
    values = {
        f"{what}: {name}": round(float(one[name]), 1)
        for what, one in compared.items()
        for name in _TOLD
    }
    met = all(one["MB at most"] < MOST_MEMORY and not one["drifts"] for one in compared.values())
    return Result("l", "a comparison of everything", values, "", None, target, met)


async def upkeep_round(
    rig: Rig,
    database: Database,
    count: int,
    servers: int,
    *,
    what: str = "health",
    rounds: int = 1,
) -> dict[str, Any]:
    """What a process of its own measured in the last of so many rounds."""
    lists = spawn(
        ["-m", "tests.harness.bench.list_stub", str(count), str(servers)], rig.folder / "lists.log"
    )
    try:
        assert lists.stdout is not None
        port = int(await asyncio.to_thread(lists.stdout.readline))
        address = f"http://127.0.0.1:{port}"
        arguments = [what, database.url, rig.redis_url, address, str(servers), str(rounds)]
        log = rig.folder / "upkeep.log"
        measured = spawn(["-m", "tests.harness.bench.upkeep_round", *arguments], log)
        said, _ = await asyncio.to_thread(measured.communicate)
        if measured.returncode:
            raise Slow(f"it failed: {log.read_text()[-2000:]}")
        told: dict[str, Any] = json.loads(said.splitlines()[-1])
        return told
    finally:
        end(lists)


async def sweep(rig: Rig, count: int, say: Say) -> Result:
    """(m): the query of a sweep, with so many sagas waiting for a time that has not come."""
    database = await rig.fresh()
    for at in range(0, count, _CHUNK):
        await database.connection.execute(_WAITING, at, min(at + _CHUNK, count) - 1)
    await database.connection.execute("VACUUM ANALYZE evosaga.sagas")
    times = []
    for _ in range(20):
        began = time.perf_counter()
        await recovery.look(database.connection, "bench", 500, [("create-integration", 1)])
        times.append((time.perf_counter() - began) * 1000)
    await database.connection.close()
    took = statistics.median(times)
    say(f"a sweep past {count:,} waiting sagas: {took:.2f} ms")
    wall, used = await _turns(rig)
    say(f"a look at {_BEHIND_OTHERS:,} that wait behind others: {wall:.2f} ms, {used:.2f} of CPU")
    values = {
        f"{count:,} waiting": took,
        f"{_BEHIND_OTHERS:,} behind others": wall,
        f"{_BEHIND_OTHERS:,} behind others, CPU": used,
    }
    target, met = f"< {LONGEST_SWEEP:g} ms each, turns by CPU", max(took, used) < LONGEST_SWEEP
    return Result("m", "a sweep, nothing due", values, "ms", None, target, met)


async def _turns(rig: Rig) -> tuple[float, float]:
    """Milliseconds of the other half of a sweep, whose turn has come: by the clock, and of CPU.

    CPU is that of this thread and of Postgres's process for its one connection.
    """
    database = await rig.fresh()
    for statement in (_AHEAD, _BEHIND):
        await database.connection.execute(statement, _BEHIND_OTHERS)
    await database.connection.execute("VACUUM ANALYZE evosaga.sagas")
    pool = await open_pool(database.url, size=1)
    backend = Path(f"/proc/{await pool.fetchval('SELECT pg_backend_pid()')}/schedstat")
    rotation, times, used = turns.Rotation(), [], []
    for _ in range(40):
        began, cpu = time.perf_counter(), time.thread_time() + _on_processor(backend)
        await turns.come(pool, "bench", 500, [("create-integration", 1)], rotation)
        times.append((time.perf_counter() - began) * 1000)
        used.append((time.thread_time() + _on_processor(backend) - cpu) * 1000)
    await pool.close()
    await database.connection.close()
    return statistics.median(times), statistics.median(used)


def _on_processor(schedstat: Path) -> float:
    """Seconds that a process has run; its first number is in nanoseconds."""
    return int(schedstat.read_text().split()[0]) / 1e9


async def fill_integrations(database: Database, count: int, servers: int) -> None:
    """Connected ones of ours: rows, and the sagas that made them.

    Without the indexes of searches meanwhile, which would take most of the time.
    """
    for index in INDEXES:
        await database.connection.execute(f"DROP INDEX {index.schema}.{index.name}")
    for at in range(0, count, _CHUNK):
        last = min(at + _CHUNK, count) - 1
        await database.connection.execute(_MAKERS, at, last)
        await database.connection.execute(_ROWS, at, last, servers)
    for index in INDEXES:
        await database.connection.execute(made(index), timeout=600)
    for table in ("evosaga.sagas", "healthcare.integrations"):
        await database.connection.execute(f"VACUUM ANALYZE {table}")


_AHEAD: Final = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, owner, scheduled_at)
SELECT md5('ahead' || n)::uuid, 'create-integration', 1, 'running', 'key/' || n, n::text, '',
    n::text, 3, 'another', now()
FROM generate_series(1, $1::int) AS n
"""
_BEHIND: Final = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, behind, code, message, scheduled_at)
SELECT md5('behind' || n)::uuid, 'create-integration', 1, 'running',
    'key/' || n || '/behind/' || md5('behind' || n)::uuid, n::text, '', n::text, 1,
    md5('ahead' || n)::uuid, 'waiting', 'waits', now()
FROM generate_series(1, $1::int) AS n
"""
_ID: Final = "md5(n::text)::uuid"
_MAKERS: Final = f"""
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, organization_id,
    instance_name, command_id, command_hash, correlation_id, next_sequence, created_at, updated_at)
SELECT {_ID}, 'create-integration', 1, 'completed', 'whatsapp/evolution/' || {_ID}, {_ID},
    'wa-' || {_ID}, {_ID}::text, '', {_ID}::text, 12, now() - interval '1 day',
    now() - interval '1 day'
FROM generate_series($1::bigint, $2::bigint) AS n
"""  # constants only
_ROWS: Final = f"""
INSERT INTO healthcare.integrations (id, organization_id, status, config, whatsapp_number)
SELECT {_ID}, {_ID}, 'connected', jsonb_strip_nulls(jsonb_build_object(
    'instance_name', 'wa-' || {_ID}, 'clinic_id', {_ID}, 'name', 'Cl\u00ednica ' || n,
    'channel', 'WHATSAPP-BAILEYS', 'server',
    CASE WHEN n % $3 > 0 THEN 's' || (n % $3) END)), '55' || lpad(n::text, 11, '0')
FROM generate_series($1::bigint, $2::bigint) AS n
"""  # constants only
_WAITING: Final = f"""
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence, next_at, scheduled_at)
SELECT {_ID}, 'create-integration', 1, 'running', 'waiting/' || n, {_ID}::text, '', {_ID}::text, 3,
    now() + interval '1 hour' + make_interval(secs => n % 86400), now()
FROM generate_series($1::bigint, $2::bigint) AS n
"""  # constants only
