"""What is measured. Every function here is one letter of the table that ``make bench`` prints.

Two sides of a ratio are measured in turns, in short rounds, and compared by their medians: these
machines swing by half within minutes, and a ratio is all that means anything on another one.
"""

import asyncio
import itertools
import secrets
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from events import streams
from events.database import open_pool
from orchestrator.queries import Filter, find_saga, list_sagas
from tests.bench.filling import fill
from tests.bench.rig import Database, Rig, creates, end

WARM_UP: Final = 50

Say = Callable[[str], None]


@dataclass
class Result:
    """One line of the table. ``unit`` says what ``values`` are; ``target`` is a sentence."""

    letter: str
    what: str
    values: dict[str, float]
    unit: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    series: dict[str, list[float]] = field(default_factory=dict)


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# --- throughput: ours, the ideal loop, several workers ------------------------------------------


async def ours(rig: Rig, count: int, workers: int = 1, **environment: str) -> float:
    """Creates a second, from the first XADD to the last saga.completed."""
    database = await rig.fresh()
    processes = [await rig.worker(database.url, **environment) for _ in range(workers)]
    try:
        await rig.publish(streams.COMMANDS, creates(WARM_UP))
        await database.completed("evosaga.sagas", WARM_UP)
        began = await rig.publish(streams.COMMANDS, creates(count))
        return count / (await database.completed("evosaga.sagas", WARM_UP + count) - began)
    finally:
        for process in processes:
            end(process)
        await database.connection.close()


async def ideal(rig: Rig, count: int) -> float:
    """The same by the hand-written loop."""
    database = await rig.fresh()
    process = await rig.ideal(database.url)
    try:
        await rig.publish("ideal:commands", creates(WARM_UP))
        await database.completed("ideal_sagas", WARM_UP)
        began = await rig.publish("ideal:commands", creates(count))
        return count / (await database.completed("ideal_sagas", WARM_UP + count) - began)
    finally:
        end(process)
        await database.connection.close()


async def dbos(rig: Rig, count: int) -> float:
    """The same by DBOS."""
    database = await rig.fresh()
    process = await rig.dbos(database.url)
    try:
        await rig.publish("dbos:commands", creates(WARM_UP))
        await database.completed("dbos.workflow_status", WARM_UP, "SUCCESS")
        began = await rig.publish("dbos:commands", creates(count))
        done = await database.completed("dbos.workflow_status", WARM_UP + count, "SUCCESS")
        return count / (done - began)
    finally:
        end(process)
        await database.connection.close()


async def throughput(
    rig: Rig, count: int, rounds: int, say: Say, *, peer: bool = False
) -> list[Result]:
    """(a), (b) and (d): one worker, the ideal loop, two and three workers, in turns."""
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        "ideal loop": lambda: ideal(rig, count),
        "1 worker": lambda: ours(rig, count),
        "2 workers": lambda: ours(rig, count, 2),
        "3 workers": lambda: ours(rig, count, 3),
    }
    if peer:
        sides["DBOS"] = lambda: dbos(rig, max(50, count // 10))
    series: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            rate = await measure()
            series[name].append(rate)
            say(f"round {number + 1} of {rounds}: {name}: {rate:.0f} creates/s")
    rates = {name: statistics.median(measured) for name, measured in series.items()}
    one, two = rates["1 worker"] / rates["ideal loop"], rates["2 workers"] / rates["1 worker"]
    pick = {name: rates[name] for name in ("1 worker", "ideal loop")}
    more = {name: rates[name] for name in ("1 worker", "2 workers", "3 workers")}
    told = "one worker >= 0.6 of the ideal loop"
    beside = []
    if peer:
        times = rates["1 worker"] / rates["DBOS"]
        both = {name: rates[name] for name in ("1 worker", "DBOS")}
        goal = "one worker >= 10 times DBOS"
        beside = [Result("a", "beside DBOS", both, "creates/s", times, goal, times >= 10)]
    return [
        Result("a b", "creates, one worker", pick, "creates/s", one, told, one >= 0.6, series),
        Result("d", "more workers", more, "creates/s", two, "two >= 1.4 of one", two >= 1.4),
        *beside,
    ]


# --- one at a time -----------------------------------------------------------------------------


async def one_at_a_time(rig: Rig, count: int, say: Say) -> Result:
    """(c): the time of a single create with nothing else going on, from XADD to completed."""
    theirs = await _alone(rig, "ideal:commands", "ideal_sagas", rig.ideal, count)
    mine = await _alone(rig, streams.COMMANDS, "evosaga.sagas", rig.worker, count)
    values = {
        f"{name} {label}": percentile(times, share) * 1000
        for name, times in (("ours", mine), ("ideal", theirs))
        for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    ratio = values["ours p50"] / values["ideal p50"]
    say(f"one at a time: p50 {values['ours p50']:.1f} ms, ideal {values['ideal p50']:.1f} ms")
    target = "p50 <= 2 times the ideal loop's"
    return Result("c", "one create at a time", values, "ms", ratio, target, ratio <= 2)


async def _alone(
    rig: Rig,
    stream: str,
    table: str,
    start: Callable[[str], Awaitable[Any]],
    count: int,
) -> list[float]:
    database = await rig.fresh()
    process = await start(database.url)
    query = f"SELECT status FROM {table} WHERE saga_id = $1"
    times = []
    try:
        for command in creates(count + 5):
            began = await rig.publish(stream, [command])
            while (
                await database.connection.fetchval(query, uuid.UUID(command["id"])) != "completed"
            ):
                await asyncio.sleep(0.0005)
            times.append(time.perf_counter() - began)
    finally:
        end(process)
        await database.connection.close()
    return times[5:]


# --- recovery ----------------------------------------------------------------------------------


async def recovery(rig: Rig, count: int, say: Say) -> Result:
    """(e): kill -9 with that many in flight; until the other worker has finished all of them."""
    database = await rig.fresh()
    victim = await rig.worker(database.url)
    try:
        await rig.publish(streams.COMMANDS, creates(count))
        query = "SELECT count(*) FROM evosaga.sagas WHERE status = 'running'"
        begun = "SELECT count(*) FROM evosaga.sagas"
        while await database.connection.fetchval(begun) < count * 0.6:
            await asyncio.sleep(0.002)
        victim.kill()
        killed = time.perf_counter()
        in_flight = await database.connection.fetchval(query)
        heir = await rig.worker(database.url)
        spent = await database.completed("evosaga.sagas", count) - killed
        end(heir)
        unknown = await database.connection.fetchval(
            "SELECT count(*) FROM evosaga.saga_events "
            "WHERE type = 'step.failed' AND data ->> 'code' = 'worker_lost'"
        )
    finally:
        end(victim)
        await database.connection.close()
    repeated = (await rig.stub_says())["repeated"]
    say(f"recovery: {count} done {spent:.1f} s after the kill, {repeated} creates repeated")
    values = {
        "seconds": spent,
        "in flight at the kill": in_flight,
        "attempts in doubt": unknown,
        "creates sent twice": repeated,
    }
    target = "< 5 s, nothing repeated but what was unknown"
    return Result("e", "kill -9, one worker", values, "", None, target, spent < 5 and not repeated)


# --- queries and appends at size ---------------------------------------------------------------


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
