"""What is measured. Every function here is one letter of the table that ``make bench`` prints.

Two sides of a ratio are measured in turns, in short rounds, and compared by their medians: these
machines swing by half within minutes, and a ratio is all that means anything on another one.
"""

import asyncio
import os
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from events import streams
from tests.bench import cpu
from tests.bench.cpu import Spent
from tests.bench.rig import Database, Process, Rig, creates, end

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


@dataclass(frozen=True)
class Run:
    """Creates a second, from the first XADD to the last saga.completed, and what they took."""

    rate: float
    spent: Spent | None


async def ours(rig: Rig, count: int, workers: int = 1, **environment: str) -> Run:
    """So many creates by so many workers."""
    database = await rig.fresh()
    processes = [await rig.worker(database.url, **environment) for _ in range(workers)]
    return await _run(rig, database, processes, streams.COMMANDS, "evosaga.sagas", count)


async def ideal(rig: Rig, count: int) -> Run:
    """The same by the hand-written loop."""
    database = await rig.fresh()
    process = await rig.ideal(database.url)
    return await _run(rig, database, [process], "ideal:commands", "ideal_sagas", count)


async def _run(
    rig: Rig, database: Database, processes: list[Process], stream: str, table: str, count: int
) -> Run:
    groups = {"worker": [process.pid for process in processes], **rig.servers}
    try:
        await rig.publish(stream, creates(WARM_UP))
        await database.completed(table, WARM_UP)
        before = cpu.read(groups)
        began = await rig.publish(stream, creates(count))
        took = await database.completed(table, WARM_UP + count) - began
        return Run(count / took, cpu.spent(before, cpu.read(groups), count))
    finally:
        for process in processes:
            end(process)
        await database.connection.close()


async def dbos(rig: Rig, count: int) -> Run:
    """The same by DBOS."""
    database = await rig.fresh()
    process = await rig.dbos(database.url)
    try:
        await rig.publish("dbos:commands", creates(WARM_UP))
        await database.completed("dbos.workflow_status", WARM_UP, "SUCCESS")
        began = await rig.publish("dbos:commands", creates(count))
        done = await database.completed("dbos.workflow_status", WARM_UP + count, "SUCCESS")
        return Run(count / (done - began), None)
    finally:
        end(process)
        await database.connection.close()


async def throughput(
    rig: Rig, count: int, rounds: int, say: Say, *, peer: bool = False
) -> list[Result]:
    """(a), (b) and (d): one worker, the ideal loop, two and three workers, in turns."""
    sides: dict[str, Callable[[], Awaitable[Run]]] = {
        "ideal loop": lambda: ideal(rig, count),
        "1 worker": lambda: ours(rig, count),
        "2 workers": lambda: ours(rig, count, 2),
        "3 workers": lambda: ours(rig, count, 3),
    }
    if peer:
        sides["DBOS"] = lambda: dbos(rig, max(50, count // 10))
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            run = await measure()
            runs[name].append(run)
            say(f"round {number + 1} of {rounds}: {name}: {run.rate:.0f} creates/s")
    series = {name: [run.rate for run in measured] for name, measured in runs.items()}
    rates = {name: statistics.median(measured) for name, measured in series.items()}
    one = rates["1 worker"] / rates["ideal loop"]
    pick = {name: rates[name] for name in ("1 worker", "ideal loop")}
    told = "one worker >= 0.6 of the ideal loop"
    results = [
        Result("a b", "creates, one worker", pick, "creates/s", one, told, one >= 0.6, series),
        _more_workers(rates, [run.spent for run in runs["1 worker"]]),
        *_processor(runs),
    ]
    if peer:
        times = rates["1 worker"] / rates["DBOS"]
        both = {name: rates[name] for name in ("1 worker", "DBOS")}
        goal = "one worker >= 10 times DBOS"
        results.append(Result("a", "beside DBOS", both, "creates/s", times, goal, times >= 10))
    return results


def _more_workers(rates: dict[str, float], spent: list[Spent | None]) -> Result:
    """(d), unless the cores are busy already: then more workers could not do more."""
    values = {name: rates[name] for name in ("1 worker", "2 workers", "3 workers")}
    two, cores = values["2 workers"] / values["1 worker"], os.cpu_count() or 1
    target, met = "two >= 1.4 of one", two >= 1.4
    busy = statistics.median(one.busy for one in spent if one) if all(spent) else 0.0
    if not met and busy * 1.4 > cores:
        target = f"the cores don't allow it: {busy:.1f} of {cores} are busy with one worker"
        return Result("d", "more workers", values, "creates/s", two, target)
    return Result("d", "more workers", values, "creates/s", two, target, met)


def _processor(runs: dict[str, list[Run]]) -> list[Result]:
    """(b): what one create costs in processor time, which a busy machine changes least."""
    results = []
    for name in ("1 worker", "ideal loop"):
        spent = [run.spent for run in runs[name] if run.spent]
        if spent:
            each = {who: statistics.median(one.each[who] for one in spent) for who in spent[0].each}
            each["in all"] = sum(each.values())
            each["cores busy"] = statistics.median(one.busy for one in spent)
            results.append(Result("b", f"cpu_ms_a_create, {name}", each, ""))
    return results


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
    """(e): kill -9 with that many in flight; until the other worker has finished all of them.

    So that all are, the stub answers no create until the kill: what it was asked for is made.
    """
    database = await rig.fresh()
    victim = await rig.worker(database.url)
    try:
        await rig.tell_stub("silence/create")
        await rig.publish(streams.COMMANDS, creates(count))
        in_flight = "SELECT count(*) FROM evosaga.sagas WHERE status = 'running'"
        while (found := await database.connection.fetchval(in_flight)) < count:
            await asyncio.sleep(0.01)
        victim.kill()
        killed = time.perf_counter()
        await rig.tell_stub("answer")
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
        "in flight at the kill": found,
        "attempts in doubt": unknown,
        "creates sent twice": repeated,
    }
    target = "< 5 s, nothing repeated but what was unknown"
    return Result("e", "kill -9, one worker", values, "", None, target, spent < 5 and not repeated)
