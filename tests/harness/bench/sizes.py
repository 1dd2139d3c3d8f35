"""Queries and appends with a few and with very many finished sagas."""

import itertools
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from evosaga.events.database import open_pool
from evosaga.orchestrator.queries.sagas import Filter, find_saga, list_sagas
from tests.harness.bench.filling import fill
from tests.harness.bench.measures import Result, Say
from tests.harness.bench.rig import Database, Rig


async def at_size(rig: Rig, sizes: tuple[int, int], say: Say) -> list[Result]:
    """(f): status queries, and appending, with a few and with very many finished sagas."""
    database = await rig.fresh()
    answers: dict[str, dict[int, float]] = {}
    present = 0
    for size in sizes:
        say(f"filling the log up to {size:,} finished sagas")
        await fill(database.connection, size - present, say)
        present = size
        for name, seconds in (await _queries(database)).items():
            answers.setdefault(name, {})[size] = seconds * 1000
    small, large = sizes
    results = []
    for name, by_size in answers.items():
        ratio = by_size[large] / by_size[small]
        values = {f"{size:,} sagas": taken for size, taken in by_size.items()}
        results.append(Result("f", name, values, "ms", ratio, "<= 2 times", ratio <= 2))
    await database.connection.close()
    return results


async def _queries(database: Database) -> dict[str, float]:
    """Medians, in seconds."""
    pool = await open_pool(database.url, size=2)
    some = await pool.fetchrow(
        "SELECT saga_id, organization_id, instance_name FROM evosaga.sagas "
        "ORDER BY created_at DESC OFFSET 500 LIMIT 1"
    )
    assert some is not None
    appending = itertools.count(secrets.randbelow(10**12) + 10**9, 100)

    async def append() -> None:
        await fill(database.connection, 100, lambda _: None, start=next(appending))

    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "one saga": lambda: find_saga(pool, str(some["saga_id"])),
        "one by instance name": lambda: find_saga(pool, some["instance_name"]),
        "a page of 50": lambda: list_sagas(pool, Filter(), limit=50),
        "a page of 50 completed": lambda: list_sagas(pool, Filter(status="completed"), limit=50),
        "a page of an organization": lambda: list_sagas(
            pool, Filter(organization_id=some["organization_id"]), limit=50
        ),
        "appending 100 sagas": append,
    }
    taken = {}
    for name, ask in asked.items():
        times = []
        for _ in range(60):
            began = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - began)
        taken[name] = statistics.median(times)
    await pool.close()
    return taken
