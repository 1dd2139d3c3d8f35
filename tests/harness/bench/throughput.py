"""How many creates a second: ours, the ideal loop's, several workers', and whoever was asked for.

All of them in turns, one round after the other, and compared by their medians.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from evosaga.events import streams
from tests.harness.bench import cpu
from tests.harness.bench.cpu import Spent
from tests.harness.bench.measures import Result, Say
from tests.harness.bench.peers import DONE, STREAM, Peer
from tests.harness.bench.rig import LONGEST, Database, Process, Rig, Slow, creates, end

WARM_UP: Final = 50


BARE: Final = "ideal loop, bare"
"""The same loop on the HTTP transport alone, as our client of Evolution is."""


@dataclass(frozen=True)
class Run:
    """Creates a second, from the first XADD to the last saga.completed, and what they took."""

    rate: float
    spent: Spent | None


async def ours(rig: Rig, count: int, workers: int = 1, **environment: str) -> Run:
    """So many creates by so many workers."""
    database = await rig.fresh()
    processes = [await rig.worker(database.url, **environment) for _ in range(workers)]
    done = partial(database.completed, "evosaga.sagas")
    return await _run(rig, database, processes, streams.COMMANDS, done, count)


async def ideal(rig: Rig, count: int, *how: str) -> Run:
    """The same by the hand-written loop."""
    database = await rig.fresh()
    process = await rig.ideal(database.url, *how)
    done = partial(database.completed, "ideal_sagas")
    return await _run(rig, database, [process], "ideal:commands", done, count)


async def theirs(rig: Rig, peer: Peer, count: int) -> Run:
    """The same by one of the others, whose word is checked in the end by the rows that it made."""
    database = await rig.fresh()
    process = await rig.peer(peer, database.url)

    async def done(wanted: int) -> float:
        began = time.perf_counter()
        while int(await rig.redis.get(DONE) or 0) < wanted:
            if process.poll() is not None or time.perf_counter() - began > LONGEST:
                log = (rig.folder / f"{peer.name}.log").read_text()
                raise Slow(f"{peer.name} did not do {wanted}: {log[-2000:]}")
            await asyncio.sleep(0.002)
        ended = time.perf_counter()
        rows = await database.connection.fetchval("SELECT count(*) FROM peer_integrations")
        assert rows == wanted, f"{peer.name} told of {wanted} and made {rows}"
        return ended

    return await _run(rig, database, [process], STREAM, done, count, patience=10)


async def _run(
    rig: Rig,
    database: Database,
    processes: list[Process],
    stream: str,
    done: Callable[[int], Awaitable[float]],
    count: int,
    patience: float = 0,
) -> Run:
    groups = {"worker": [process.pid for process in processes], **rig.servers}
    try:
        await rig.publish(stream, creates(WARM_UP))
        await done(WARM_UP)
        before = cpu.read(groups)
        began = await rig.publish(stream, creates(count))
        took = await done(WARM_UP + count) - began
        return Run(count / took, cpu.spent(before, cpu.read(groups), count))
    finally:
        for process in processes:
            end(process, patience)
        await database.connection.close()


async def throughput(
    rig: Rig, count: int, rounds: int, say: Say, others: Sequence[Peer] = ()
) -> list[Result]:
    """(a), (b) and (d): one worker, the ideal loop, more workers and the others, in turns."""
    sides: dict[str, Callable[[], Awaitable[Run]]] = {
        "ideal loop": lambda: ideal(rig, count),
        BARE: lambda: ideal(rig, count, "bare"),
        "1 worker": lambda: ours(rig, count),
        "2 workers": lambda: ours(rig, count, 2),
        "3 workers": lambda: ours(rig, count, 3),
    }
    for peer in others:
        sides[peer.name] = partial(theirs, rig, peer, max(50, count // peer.share))
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
    return [
        Result("a b", "creates, one worker", pick, "creates/s", one, told, one >= 0.6, series),
        _beside_bare(rates),
        _more_workers(rates, [run.spent for run in runs["2 workers"]]),
        *_processor(runs, ("1 worker", "ideal loop", BARE, *(peer.name for peer in others))),
        *(_beside(peer, rates) for peer in others),
    ]


def _beside_bare(rates: dict[str, float]) -> Result:
    """(b), beside the loop on the HTTP transport alone: a harder yardstick, without a target."""
    both = {name: rates[name] for name in ("1 worker", BARE)}
    return Result("b", "creates, bare loop", both, "creates/s", both["1 worker"] / both[BARE])


def _beside(peer: Peer, rates: dict[str, float]) -> Result:
    """(a), beside one of the others."""
    times = rates["1 worker"] / rates[peer.name]
    both = {name: rates[name] for name in ("1 worker", peer.name)}
    if peer.times is None:
        return Result("a", f"beside {peer.name}", both, "creates/s", times)
    goal = f"one worker >= {peer.times:g} times {peer.name}"
    met = times >= peer.times
    return Result("a", f"beside {peer.name}", both, "creates/s", times, goal, met)


def _more_workers(rates: dict[str, float], spent: list[Spent | None]) -> Result:
    """(d), unless two workers have used up the cores: then they could not do more."""
    values = {name: rates[name] for name in ("1 worker", "2 workers", "3 workers")}
    two, cores = values["2 workers"] / values["1 worker"], os.cpu_count() or 1
    target, met = "two >= 1.4 of one", two >= 1.4
    busy = statistics.median(one.busy for one in spent if one) if all(spent) else 0.0
    if not met and busy > 0.9 * cores:
        target = f"the cores don't allow it: {busy:.2f} of {cores} are busy with two workers"
        return Result("d", "more workers", values, "creates/s", two, target)
    return Result("d", "more workers", values, "creates/s", two, target, met)


def _processor(runs: dict[str, list[Run]], names: Sequence[str]) -> list[Result]:
    """(b): what one create costs in processor time, which a busy machine changes least."""
    results = []
    for name in names:
        spent = [run.spent for run in runs[name] if run.spent]
        if spent:
            each = {who: statistics.median(one.each[who] for one in spent) for who in spent[0].each}
            each["in all"] = sum(each.values())
            each["cores busy"] = statistics.median(one.busy for one in spent)
            results.append(Result("b", f"cpu_ms_a_create, {name}", each, ""))
    return results
