"""``make chaos TOPOLOGY=standby``: Postgres fails over to its standby in the middle of the load.

*Synchronous*: nothing that was acknowledged is lost. *Asynchronous*: the standby was cut off a
moment before, so the end of the log is lost; that is noticed, and ``evosaga recover --fix`` brings
back what Redis and Evolution still know. Workers are killed meanwhile. What is checked at the end:
every command has a saga that is over, nothing was made twice, every instance of ours has a row and
every row an instance, and no stranger was touched.
"""

import asyncio
import contextlib
import os
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import append_order, log_loss, streams
from evosaga.events.database import TRANSIENT, Pool, open_pool
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.postgres import local_postgres
from evosaga.orchestrator.local.valkey import local_valkey
from tests.harness.chaos.topology import API_KEY, SECRET
from tests.harness.chaos.worker import start_worker
from tests.support.commandline import forked
from tests.support.driving import contradictions, create, delete, nothing_pending
from tests.support.standby import Pair, standby_of
from tests.support.waiting import eventually

STRANGER: Final = "a-neighbour"
_LOST: Final = 0.4
"""Share of the load that comes while the standby is cut off."""


@dataclass
class Run:
    """One fail-over under load."""

    pair: Pair
    pool: Pool
    redis: Redis
    evolution: SimulatedEvolution
    environment: dict[str, str]
    folder: Path
    rng: random.Random
    workers: list[Any] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)
    forgotten: int = 0
    """Commands that were acknowledged and that the log had forgotten."""

    async def load(self, sagas: int, seconds: float) -> None:
        """Creates, deletes of some of them, and every tenth command twice."""
        for _ in range(sagas):
            made = create()
            await self._publish(made)
            if self.rng.random() < 0.4 and len(self.published) > 3:
                old = self.rng.choice([c for c in self.published if c["type"] == made["type"]])
                await self._publish(delete(f"wa-{old['id']}"))
            await asyncio.sleep(seconds / sagas)

    async def _publish(self, command: dict[str, Any]) -> None:
        self.published.append(command)
        for _ in range(1 + (self.rng.random() < 0.1)):
            await streams.publish_command(self.redis, command)

    def start_worker(self) -> None:
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(start_worker(self.environment, log))

    def kill_worker(self) -> None:
        """SIGKILL, and another one in its place."""
        victim = self.rng.choice([one for one in self.workers if one.is_alive()])
        victim.kill()
        self.start_worker()

    async def workers_up(self) -> bool:
        """Whether each of them has begun."""
        logs = (self.folder / f"worker-{n}.log" for n in range(len(self.workers)))
        return all(log.exists() and "worker is up" in log.read_text() for log in logs)

    async def at_rest(self) -> bool:
        """Whether all that was published is over and published. Supervises the workers."""
        if not any(worker.is_alive() for worker in self.workers):
            self.start_worker()  # a server was away when it began
        try:
            left = await self.pool.fetchval(_LEFT)
            return not left and await nothing_pending(self.redis)
        except TRANSIENT:
            return False

    async def violations(self) -> list[str]:
        """What should not be, in sentences."""
        ids = [uuid.UUID(command["id"]) for command in self.published]
        rows = await self.pool.fetch(_STATUSES, ids)
        statuses = {row["saga_id"]: row["status"] for row in rows}
        found = [f"lost: {id_}" for id_ in set(ids) - set(statuses)]
        found += [f"{id_} is {s}" for id_, s in statuses.items() if s not in _OVER]
        if letters := await self.redis.xlen(streams.DEAD_COMMANDS):
            found.append(f"{letters} dead letters")
        applied = Counter(
            (entry.name, entry.applied) for entry in self.evolution.journal if entry.applied
        )
        made = {name for name, what in applied if what == "created"}
        found += [
            f"made twice: {name}"
            for name in made
            if applied[name, "created"] > 1 + applied[name, "removed"]
        ]
        live = set(self.evolution.live()) - {STRANGER}
        named = {row["name"] for row in await self.pool.fetch(_ROWS)}
        found += [f"an orphan: {name}" for name in live - named]
        found += [f"a row without an instance: {name}" for name in named - live]
        if STRANGER not in self.evolution.live() or applied[STRANGER, "removed"]:
            found.append("a stranger was touched")
        return found + await contradictions(self.pool)


async def fail_over(
    sagas: int,
    *,
    synchronous: bool,
    folder: Path,
    seconds: float,
    workers: int = 2,
    kills: int = 0,
    seed: int = 0,
    parallel: bool = False,
    say: Callable[[str], None] = lambda _: None,
    look: Callable[[Pool], Awaitable[None]] | None = None,
) -> Run:
    """One run; ``violations`` of what it returns has been asked already, and raises if any.

    ``look``: is called while both servers are there.
    """
    async with _world(folder, synchronous, seed) as run:
        for _ in range(workers):
            run.start_worker()
        await eventually(run.workers_up, 60, message="the workers to be up")
        if parallel:
            await append_order.switch(run.pool, parallel=True)
        if look is not None:
            await look(run.pool)
        part = max(1, int(sagas * _LOST))
        await run.load(sagas - 2 * part, seconds * (1 - 2 * _LOST))
        for _ in range(kills):
            run.kill_worker()
        if not synchronous:
            await eventually(run.at_rest, 60, message="the load before it to be over")
            await run.pair.caught_up()
            await run.pair.cut_off()
        await run.load(part, seconds * _LOST)
        if not synchronous:  # else it could come before anything was lost
            await eventually(lambda: _acknowledged(run), 60, message="some to be acknowledged")
        say("the primary dies, its standby takes over")
        await run.pair.fail_over()
        await run.load(part, seconds * _LOST)
        if synchronous:
            await eventually(run.at_rest, 120, message="all to be over")
            assert await log_loss.recorded(run.pool) is None
        else:
            await _recovered(run, say)
        if found := await run.violations():
            raise AssertionError("\n".join(found))
        return run


async def _acknowledged(run: Run) -> bool:
    return await nothing_pending(run.redis)


async def _recovered(run: Run, say: Callable[[str], None]) -> None:
    """It is noticed while the workers go on; then ``recover`` as an operator calls it."""

    async def noticed() -> bool:
        try:
            return await log_loss.recorded(run.pool) is not None
        except TRANSIENT:
            return False

    await eventually(noticed, 60, message="the loss to be noticed")
    plan = await _verb(run, "recover")
    run.forgotten = len(plan["commands"])
    say(f"noticed: {plan['went_back']['said']}; {run.forgotten} commands were forgotten")
    done = await _verb(run, "recover", "--fix")
    assert done["begun"] == 1, done
    assert done["lost_sagas"] == [], "all of them came over the stream"
    await eventually(run.at_rest, 120, message="all to be over")


async def _verb(run: Run, *words: str) -> Any:
    environment = {"PATH": os.environ["PATH"], **run.environment}
    ran = await forked(("--json", *words), environment, run.folder)
    assert ran.code in (0, 1), ran.err
    return ran.json


@contextlib.asynccontextmanager
async def _world(folder: Path, synchronous: bool, seed: int) -> AsyncIterator[Run]:
    """Both servers, Valkey and Evolution; workers end with it."""
    async with contextlib.AsyncExitStack() as stack:
        primary = stack.enter_context(local_postgres())
        valkey = stack.enter_context(local_valkey())
        await migrations.migrate(primary.url)
        pair = Pair(primary, stack.enter_context(standby_of(primary)))
        if synchronous:
            await pair.be_synchronous()
        evolution = await stack.enter_async_context(SimulatedEvolution(api_key=API_KEY, pace=0.05))
        evolution.put(STRANGER, phone="5511900000000")
        pool = await open_pool(pair.url, size=2)
        stack.callback(pool.terminate)
        redis = streams.connect(valkey.url)
        stack.push_async_callback(redis.aclose)
        environment = {
            "EVOSAGA_DATABASE_URL": pair.url,
            "EVOSAGA_REDIS_URL": valkey.url,
            "EVOSAGA_EVOLUTION_URL": evolution.url,
            "EVOSAGA_EVOLUTION_API_KEY": API_KEY,
            "EVOSAGA_SECRET_KEY": SECRET,
            "EVOSAGA_QUIET_SECONDS": "0.3",
            "EVOSAGA_LEASE_SECONDS": "1.5",
            "EVOSAGA_EVOLUTION_TIMEOUT": "5",
        }
        run = Run(pair, pool, redis, evolution, environment, folder, random.Random(seed))
        try:
            yield run
        finally:
            for worker in run.workers:
                worker.kill()
                worker.join()


async def both(
    sagas: int,
    seconds: float,
    folder: Path,
    seed: int,
    say: Callable[[str], None],
    *,
    parallel: bool = False,
) -> None:
    """What ``make chaos TOPOLOGY=standby`` does. Raises ``AssertionError`` with what is wrong."""
    for synchronous in (True, False):
        kind = "synchronous" if synchronous else "asynchronous"
        say(f"{kind}: {sagas} creates in {seconds:.0f} s")
        place = folder / kind
        place.mkdir()
        run = await fail_over(
            sagas,
            synchronous=synchronous,
            folder=place,
            seconds=seconds,
            workers=4,
            kills=2,
            seed=seed,
            parallel=parallel,
            say=say,
        )
        say(f"{kind}: {len(run.published)} commands, lost 0, twice 0, orphans 0, strangers 0")


_OVER: Final = ("completed", "compensated", "rejected")
_LEFT: Final = """
SELECT (SELECT count(*) FROM evosaga.sagas WHERE status IN ('running', 'compensating'))
    + (SELECT coalesce(max(position), 0) FROM evosaga.saga_events)
    - (SELECT position FROM evosaga.relay WHERE stream = 'evosaga:events')
"""
_STATUSES: Final = "SELECT saga_id, status FROM evosaga.sagas WHERE saga_id = ANY($1)"
_ROWS: Final = "SELECT config ->> 'instance_name' AS name FROM healthcare.integrations"
