"""What running costs: memory, a worker at rest, the lag of the event stream, folding histories."""

import asyncio
import json
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from evosaga.events import streams
from evosaga.events.database import open_pool
from evosaga.events.event_log import recorded_from
from evosaga.orchestrator.engine.state import replay
from tests.harness.bench import cpu
from tests.harness.bench.filling import fill
from tests.harness.bench.measures import Result, Say, percentile
from tests.harness.bench.rig import Rig, creates, end, until


def _memory(pid: int) -> float:
    """Resident memory in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def at_rest(rig: Rig, seconds: float, say: Say) -> Result:
    """(h): memory and processor of a worker that has nothing to do."""
    database = await rig.fresh()
    process = await rig.worker(database.url)
    try:
        await asyncio.sleep(2)
        before, began = cpu.of_process(process.pid), time.monotonic()
        await asyncio.sleep(seconds)
        share = (cpu.of_process(process.pid) - before) / (time.monotonic() - began) * 100
        memory = _memory(process.pid)
    finally:
        end(process)
        await database.connection.close()
    say(f"at rest: {memory:.0f} MB, {share:.2f} % of a core")
    values = {"MB": memory, "% of a core": share}
    target = "under 120 MB and 1 %"
    return Result("h", "a worker at rest", values, "", None, target, memory < 120 and share < 1)


async def crowded(rig: Rig, count: int, say: Say) -> Result:
    """(h): memory with that many sagas in flight at once."""
    database = await rig.fresh()
    process = await rig.worker(database.url, EVOSAGA_CAPACITY=str(count))
    peak = 0.0
    try:
        await rig.publish(streams.COMMANDS, creates(count))

        def done() -> bool:
            nonlocal peak
            peak = max(peak, _memory(process.pid))
            return finished.done()

        finished = asyncio.ensure_future(database.completed("evosaga.sagas", count))
        await until(done, f"{count} sagas", 300)
    finally:
        end(process)
        await database.connection.close()
    say(f"{count:,} in flight: {peak:.0f} MB at most")
    return Result("h", f"{count:,} sagas at once", {"MB at most": peak}, "")


async def delivery(rig: Rig, count: int, say: Say) -> list[Result]:
    """(i): from the start of the transaction that recorded an event (Postgres's clock) to its entry
    in the stream, twice.

    At full load all commands are there at once, so the worker is as busy as it can be, and the lag
    is mostly the wait of the relay for its turns of the event loop. Then commands come at a third
    of the rate that this run has just reached: how a worker runs that was sized with room to spare.
    """
    full, took = await _lags(rig, count, None)
    third, _ = await _lags(rig, max(1, count // 3), 3 * took / count)
    say(f"at full load {count / took:.0f} creates a second")
    results = []
    for what, lags, target in (
        ("delivery lag at full load", full, None),
        ("delivery lag at a third of it", third, 50),
    ):
        values = {"p50": percentile(lags, 0.5), "p99": percentile(lags, 0.99), "max": max(lags)}
        say(f"{what}: p50 {values['p50']:.0f} ms, p99 {values['p99']:.0f} ms")
        words, met = (f"p99 under {target} ms", values["p99"] < target) if target else ("", None)
        results.append(Result("i", what, values, "ms", None, words, met))
    return results


async def _lags(rig: Rig, count: int, apart: float | None) -> tuple[list[float], float]:
    """The lag of each event in ms, and how long that many creates took in seconds; all commands are
    there at once, or they are published that many seconds ``apart``.
    """
    database = await rig.fresh()
    process = await rig.worker(database.url)
    try:
        began = time.monotonic()
        if apart is None:
            await rig.publish(streams.COMMANDS, creates(count))
        else:
            for number, command in enumerate(creates(count)):
                await asyncio.sleep(began + number * apart - time.monotonic())
                await rig.publish(streams.COMMANDS, [command])
        await database.completed("evosaga.sagas", count)
        took = time.monotonic() - began
        last = await database.connection.fetchval("SELECT max(position) FROM evosaga.saga_events")
        query = "SELECT position FROM evosaga.relay"
        while await database.connection.fetchval(query) < last:
            await asyncio.sleep(0.01)
    finally:
        end(process)
        await database.connection.close()
    lags = []
    entries: Any = await rig.redis.xrange(streams.EVENTS)
    for entry_id, fields in entries:
        recorded = datetime.fromisoformat(json.loads(fields[b"data"])["time"])
        lags.append(int(entry_id.split(b"-")[0]) - recorded.timestamp() * 1000)
    return lags, took


async def folding(rig: Rig, sagas: int, say: Say) -> Result:
    """(g): reading histories back from the log and folding them."""
    database = await rig.fresh()
    await fill(database.connection, sagas, say)
    pool = await open_pool(database.url, size=1)
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        rows = await pool.fetch("SELECT * FROM evosaga.saga_events ORDER BY saga_id, sequence")
        recorded = [recorded_from(row) for row in rows]
        for start in range(0, len(recorded), 12):
            replay(r.event for r in recorded[start : start + 12])
        rates.append(len(rows) / (time.perf_counter() - began))
    await pool.close()
    await database.connection.close()
    rate = statistics.median(rates)
    say(f"read and folded: {rate:,.0f} events/s")
    return Result("g", "reading and folding histories", {"events/s": rate}, "")
