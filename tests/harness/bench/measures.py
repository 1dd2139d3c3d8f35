"""What is measured. Every function here is one letter of the table that ``make bench`` prints.

Two sides of a ratio are measured in turns, in short rounds, and compared by their medians: these
machines swing by half within minutes, and a ratio is all that means anything on another one.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from evosaga.events import streams
from tests.harness.bench.peers import DONE, STREAM, Peer
from tests.harness.bench.rig import Database, Process, Rig, creates, end

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


# --- one at a time -----------------------------------------------------------------------------


async def one_at_a_time(rig: Rig, count: int, say: Say, others: Sequence[Peer] = ()) -> Result:
    """(c): the time of a single create with nothing else going on, from XADD to completed."""
    sides = {
        "ideal": await _alone(rig, "ideal:commands", rig.ideal, _has("ideal_sagas"), count),
        "ours": await _alone(rig, streams.COMMANDS, rig.worker, _has("evosaga.sagas"), count),
    }
    values = {
        f"{name} {label}": percentile(sides[name], share) * 1000
        for name in ("ours", "ideal")
        for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    for one in others:
        times = await _alone(rig, STREAM, partial(rig.peer, one), _told, count)
        values[f"{one.name} p50"] = percentile(times, 0.5) * 1000
    ratio = values["ours p50"] / values["ideal p50"]
    p50 = (f"{name} {took:.1f} ms" for name, took in values.items() if name.endswith("p50"))
    say(f"one at a time: {', '.join(p50)}")
    target = "p50 <= 2 times the ideal loop's"
    return Result("c", "one create at a time", values, "ms", ratio, target, ratio <= 2)


Done = Callable[[Rig, Database, uuid.UUID, int], Awaitable[bool]]
"""Whether this create is done, which is the so-manieth."""


def _has(table: str) -> Done:
    query = f"SELECT status = 'completed' FROM {table} WHERE saga_id = $1"

    async def done(_rig: Rig, database: Database, saga_id: uuid.UUID, _number: int) -> bool:
        return bool(await database.connection.fetchval(query, saga_id))

    return done


async def _told(rig: Rig, _database: Database, _saga_id: uuid.UUID, number: int) -> bool:
    return int(await rig.redis.get(DONE) or 0) >= number


async def _alone(
    rig: Rig, stream: str, start: Callable[[str], Awaitable[Process]], done: Done, count: int
) -> list[float]:
    database = await rig.fresh()
    process = await start(database.url)
    times = []
    try:
        for number, command in enumerate(creates(count + 5), start=1):
            saga_id = uuid.UUID(command["id"])
            began = await rig.publish(stream, [command])
            while not await done(rig, database, saga_id, number):
                await asyncio.sleep(0.0005)
            times.append(time.perf_counter() - began)
    finally:
        end(process, patience=10 if stream == STREAM else 0)
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
