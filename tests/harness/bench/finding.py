"""Searches and pages among very many integrations, with the plans that Postgres chooses."""

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from evosaga.events.database import open_pool
from evosaga.migrations.search_indexes import INTEGRATION_WORDS
from evosaga.orchestrator.whatsapp.integrations import words
from evosaga.orchestrator.whatsapp.integrations.find import find
from evosaga.orchestrator.whatsapp.integrations.search import Wanted, list_integrations
from tests.harness.bench.measures import Result, Say
from tests.harness.bench.rig import Rig

_ROUNDS: Final = 30
_MOST: Final = 20.0
"""Milliseconds that a search or a page may take."""
_MOST_FAR: Final = 300.0
"""The same where all rows are read, since those in need are the last of the order. Looked up for
each row by itself they took 0.7 to 1.4 s on a loaded machine."""


async def found(rig: Rig, count: int, say: Say) -> list[Result]:
    """(k): medians of searches and pages at so many integrations."""
    database = await rig.fresh()
    say(f"filling in {count:,} integrations")
    await database.connection.execute(_FILL, count)
    await database.connection.execute("VACUUM ANALYZE healthcare.integrations, evosaga.connections")
    await database.connection.execute("CHECKPOINT")  # else the first who read write the pages
    pool = await open_pool(database.url, size=2)
    some = await pool.fetchrow(
        "SELECT config ->> 'instance_name' AS name, whatsapp_number AS number "
        "FROM healthcare.integrations OFFSET $1 LIMIT 1",
        count // 2,
    )
    assert some is not None
    for text in ("odo", some["number"][-8:], some["name"][3:16]):
        for row in await pool.fetch(_EXPLAIN, words.query(text)):
            say(f"{text}: {row[0].strip()[:100]}")
    behind = (await list_integrations(pool, Wanted(sort="name"))).older
    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "three letters of a rare name": lambda: find(pool, "odo"),
        "the end of a phone number": lambda: find(pool, some["number"][-8:]),
        "the beginning of an id": lambda: find(pool, some["name"][3:16]),
        "a name that one in nine has": lambda: list_integrations(pool, Wanted(search="sol 1")),
        "a name that all have": lambda: list_integrations(pool, Wanted(search="sol")),
        "a page, newest first": lambda: list_integrations(pool, Wanted()),
        "the second page by name": lambda: list_integrations(
            pool, Wanted(sort="name"), cursor=behind
        ),
        "what needs attention": lambda: list_integrations(pool, Wanted(attention=True)),
    }
    far: dict[str, Callable[[], Awaitable[Any]]] = {
        "1.5 % in need, the oldest": lambda: list_integrations(pool, Wanted(attention=True)),
        "the same by a frequent name": lambda: list_integrations(
            pool, Wanted(search="sol", attention=True)
        ),
    }
    results = [await _measured(name, ask, count, _MOST) for name, ask in asked.items()]
    await database.connection.execute(_FAR, count)
    await database.connection.execute("VACUUM ANALYZE evosaga.connections")
    results += [await _measured(name, ask, count, _MOST_FAR) for name, ask in far.items()]
    await pool.close()
    await database.connection.close()
    return results


async def _measured(
    name: str, ask: Callable[[], Awaitable[Any]], count: int, most: float
) -> Result:
    taken = await _median(ask)
    values = {f"{count:,} integrations": taken}
    return Result("k", name, values, "ms", None, f"< {most:g} ms", taken < most)


async def _median(ask: Callable[[], Awaitable[Any]]) -> float:
    """In milliseconds."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        await ask()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


# One name in a thousand is the rare one; one connection in a hundred is down.
_FILL: Final = """
WITH made AS (
    INSERT INTO healthcare.integrations (id, organization_id, config, whatsapp_number, created_at)
    SELECT id, gen_random_uuid(), jsonb_build_object('instance_name', 'wa-' || id, 'name',
        CASE WHEN n % 1000 = 0 THEN 'Odonto Vida ' ELSE 'Clínica Sol ' END || n),
        '55119' || lpad(n::text, 8, '0'), now() - n * interval '1 minute'
    FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, $1::int) AS n) AS numbered
    RETURNING id, whatsapp_number)
INSERT INTO evosaga.connections (integration_id, state)
SELECT id, CASE WHEN right(whatsapp_number, 2) = '00' THEN 'down' ELSE 'connected' END FROM made
"""
# Those in need are the oldest, and more than are counted (from 67,000 on).
_FAR: Final = """
UPDATE evosaga.connections AS seen
SET state = CASE WHEN right(its.whatsapp_number, 8)::int > $1::int * 0.985
                 THEN 'down' ELSE 'connected' END
FROM healthcare.integrations AS its WHERE its.id = seen.integration_id
"""
_EXPLAIN: Final = f"""
EXPLAIN SELECT id FROM healthcare.integrations
WHERE ({INTEGRATION_WORDS}) @@ $1::text::tsquery LIMIT 10001
"""  # constants only
