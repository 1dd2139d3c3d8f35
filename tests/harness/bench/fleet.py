"""(o): a hundred workers at rest on a real Postgres: what they ask of it, and how they share work.

Of a worker it has the parts that ask Postgres without being asked: heartbeats, sweeps, and the jobs
of upkeep. Each job is a stub that takes as long as the real one takes of a processor, so that a
million integrations on two hundred servers are a fleet's work in the time of a real round. Each
worker has its own schedule; all have one pool, as behind a pooler.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from evosaga.events import background
from evosaga.events.database import Pool, open_pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.recovery import Recovery
from evosaga.orchestrator.maintenance.scheduler import (
    AnyJob,
    Job,
    JobResult,
    Scheduler,
    SharedJob,
    StillLeader,
)
from evosaga.sagas.registry import discover
from tests.harness.bench.measures import Result, Say
from tests.harness.bench.rig import Rig

INTEGRATIONS: Final = 1_000_000
_OF_ONE: Final = 0.00017
"""Seconds of a processor that a health round takes for one integration: see (l)."""
_LEASE: Final = 10.0
"""Seconds. Long, so that a busy machine is not taken for dead workers."""


@dataclass
class Fleet:
    """What a number of workers did."""

    rounds: list[tuple[float, str, str]] = field(default_factory=list)
    """When which server was checked, and by whom."""
    at_it: dict[str, list[StillLeader]] = field(default_factory=dict)
    """Who checks each server now: whether each of them still believes that it may."""
    twice: int = 0
    """Checks that began while another worker was at that server and believed in its lease."""
    taken_over: int = 0
    """Checks that began while one was at it whose lease had run out, and who can know it.

    Allowed: nothing is done to a server any more by whom ``StillLeader`` refuses.
    """
    leaders: list[str] = field(default_factory=list)
    """Who compared everything, round by round."""

    def shares(self) -> Counter[str]:
        """How many servers each worker has checked."""
        return Counter(worker for _, _, worker in self.rounds)

    def longest_unchecked(self, servers: Sequence[str], since: float) -> float:
        """The longest that any server waited between two checks, from then on."""
        worst, now = 0.0, time.monotonic()
        for server in servers:
            times = [at for at, name, _ in self.rounds if name == server and at >= since]
            ends = [since, *times, now]
            worst = max(worst, *(b - a for a, b in pairwise(ends)))
        return worst


class Crew:
    """One worker at rest; ``kill`` ends it without a word, as ``kill -9`` does."""

    def __init__(
        self, pool: Pool, name: str, servers: Sequence[str], every: float, seen: Fleet
    ) -> None:
        self.name = name
        log = EventLog(pool)
        lease = Lease(pool, name, ttl=_LEASE, beat=0.5)
        engine = Engine(discover(), log, None, lease, capacity=1000)
        spent = INTEGRATIONS / len(servers) * _OF_ONE

        async def check(server: str, still: StillLeader) -> JobResult:
            others = seen.at_it.setdefault(server, [])
            believed = [other() for other in others]
            seen.twice += any(believed)
            seen.taken_over += bool(others) and not any(believed)
            others.append(still)
            try:
                await asyncio.sleep(spent)
                seen.rounds.append((time.monotonic(), server, name))
            finally:
                others.remove(still)
            return JobResult({})

        async def compare(_: StillLeader) -> JobResult:
            seen.leaders.append(name)
            return JobResult({})

        jobs: list[AnyJob] = [
            SharedJob("health", every, servers, check),
            Job("orphans", every, compare),
        ]
        parts = (
            log.run(),
            lease.run(),
            Recovery(pool, log, engine, lease).run(),
            Scheduler(pool, name, jobs, lease=_LEASE).run(),
        )
        self._tasks = [asyncio.create_task(part) for part in parts]

    async def kill(self) -> None:
        await background.end(self._tasks)


async def run(
    database: str, workers: int, servers: int, every: float, seconds: float, kill: int = 0
) -> tuple[Fleet, float, float]:
    """The fleet, transactions a second, and the longest that a server waited after the kill."""
    pool, seen = await open_pool(database, size=16), Fleet()
    names = [f"s{n}" for n in range(servers)]
    crews = [Crew(pool, f"w{n}", names, every, seen) for n in range(workers)]
    try:
        await asyncio.sleep(every + 2)  # every part is known, and the first round is over
        before, began = await pool.fetchval(_COMMITS), time.monotonic()
        await asyncio.sleep(seconds)
        commits = (await pool.fetchval(_COMMITS) - before) / (time.monotonic() - began)
        killed = time.monotonic()
        for crew in crews[:kill]:
            await crew.kill()
        if kill:
            await asyncio.sleep(2 * every + 2 * _LEASE)
        return seen, commits, seen.longest_unchecked(names, killed) if kill else 0.0
    finally:
        for crew in crews:
            await crew.kill()
        await pool.close()


async def fleet(rig: Rig, say: Say, *, workers: int = 100, servers: int = 200) -> Result:
    """A tenth of them, and all; thirty of a hundred are killed."""
    values: dict[str, float] = {}
    every = 20.0
    for number, kill in ((max(1, workers // 10), 0), (workers, workers * 3 // 10)):
        database = await rig.fresh()
        await database.connection.close()
        seen, commits, waited = await run(database.url, number, servers, every, 20.0, kill)
        shares = seen.shares()
        values |= {
            f"{number}: transactions/s": round(commits, 1),
            f"{number}: of one worker": round(commits / number, 2),
            f"{number}: servers checked twice at once": seen.twice,
            f"{number}: taken over after a lease ran out": seen.taken_over,
            f"{number}: checks": len(seen.rounds),
            f"{number}: workers that checked": len(shares),
            f"{number}: most of one": max(shares.values(), default=0),
        }
        if kill:
            values[f"{number}: longest unchecked after {kill} died, s"] = round(waited, 1)
        say(f"{number} workers at rest: {values}")
    met = not any(value for name, value in values.items() if "twice" in name)
    target = "no server is checked twice at once"
    return Result("o", "a fleet at rest", values, "", None, target, met)


_COMMITS: Final = """
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""
