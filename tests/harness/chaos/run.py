"""A whole run: build the world, break it, heal it, wait until all is quiet, look at everything."""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg

from evosaga.events import append_order, streams
from evosaga.events.database import TRANSIENT, Pool, open_pool
from evosaga.orchestrator.local.evolution.journal import JournalEntry
from evosaga.orchestrator.routing import ClinicCache
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.harness.chaos.checks.leaks import dumps
from tests.harness.chaos.evidence import RESTORED, Excuses, gather
from tests.harness.chaos.nemesis import Nemesis
from tests.harness.chaos.plan import STRANGERS, make_plan
from tests.harness.chaos.publisher import Publisher
from tests.harness.chaos.resting import come_to_rest
from tests.harness.chaos.stage import FAULTY, Options, Outcome, Rest, Say, Stage
from tests.harness.chaos.topology import HTTP_KEY, SECRET, topology
from tests.harness.chaos.watching import Watcher

_UP: Final = 30.0
_SETTLE: Final = 12.0
"""Seconds after a loss of Redis's data before the publisher looks for what has no saga."""
_BY_HAND: Final = ("by hand", RESTORED, "a stranger takes the name", "a stranger's create")


async def run(options: Options, say: Say) -> Outcome:
    """Everything; ``say`` gets a line now and then."""
    began = time.monotonic()
    async with _stage(options, say) as stage:
        plan = stage.plan
        say(
            f"plan {plan.mark}: {plan.wanted} sagas, {len(plan.faults)} faults in "
            f"{plan.seconds:.0f} s, {options.workers} workers, Evolution {options.version}"
        )
        supervisor = asyncio.create_task(stage.topology.supervise(), name="supervisor")
        try:
            await _until(lambda: _workers_up(stage.pool, options.workers), "the workers to be up")
            await _faults_and_load(stage)
            say("all faults are over; waiting until all is quiet")
            await stage.nemesis.heal()
            rest = await come_to_rest(stage)
            if supervisor.done():
                supervisor.result()
            return await _look_at_everything(stage, rest, time.monotonic() - began)
        finally:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)


@contextlib.asynccontextmanager
async def _stage(options: Options, say: Say) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        if options.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evosaga-chaos-")))
        else:
            folder = options.keep / f"{options.seed}-{int(time.time())}"
            folder.mkdir(parents=True)
        made = await stack.enter_async_context(
            topology(
                folder,
                workers=options.workers,
                version=options.version,
                seed=options.seed,
                clustered=options.clustered,
            )
        )
        plan = make_plan(
            options.seed,
            sagas=options.sagas,
            seconds=options.minutes * 60 * FAULTY,
            workers=options.workers,
            version=options.version,
            modes=await made.evolution.ask("GET", "modes"),
        )
        for stranger in STRANGERS:
            await made.evolution.ask("POST", "foreign", name=stranger)
        pool = await open_pool(made.postgres.url, size=3)
        stack.callback(pool.terminate)
        if options.parallel:
            await append_order.switch(pool, parallel=True)
        redis = streams.connect(made.redis_url)
        stack.push_async_callback(redis.aclose)
        proxied = f"redis://127.0.0.1:{made.publisher.port}/0"
        publishing = streams.connect(proxied if made.cluster is None else made.cluster.url)
        stack.push_async_callback(publishing.aclose)
        http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {HTTP_KEY}"}, timeout=aiohttp.ClientTimeout(10)
        )
        await stack.enter_async_context(http)
        api = f"http://127.0.0.1:{made.front.port}"
        publisher = Publisher(plan, publishing, http, api, folder / "published.jsonl")
        nemesis, watcher = Nemesis(plan, made, redis), Watcher(pool, redis)
        yield Stage(options, made, pool, redis, plan, publisher, nemesis, watcher, say)


async def _faults_and_load(stage: Stage) -> None:
    started = asyncio.get_running_loop().time()
    looking = [
        asyncio.create_task(stage.watcher.run(), name="watcher"),
        asyncio.create_task(_progress(stage), name="progress"),
        asyncio.create_task(_make_good(stage), name="making good"),
    ]
    try:
        await asyncio.gather(stage.publisher.run(started), stage.nemesis.run(started))
        left = started + stage.plan.seconds - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, left))
    finally:
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)


async def _progress(stage: Stage) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(5.0)
        statuses = stage.watcher.statuses
        stage.say(
            f"{time.monotonic() - began:4.0f} s  published {len(stage.publisher.told):5}  "
            f"sagas {sum(statuses.values()):5}  "
            f"under way {statuses['running'] + statuses['compensating']:4}  "
            f"workers that ended {len(stage.topology.deaths):4}  faults {_faults(stage):4}"
        )


def _faults(stage: Stage) -> int:
    """So far, without those of Evolution itself."""
    proxies = sum(sum(proxy.faults.values()) for proxy in stage.topology.proxies())
    return sum(stage.nemesis.done.values()) + sum(stage.topology.struck.values()) + proxies


async def _make_good(stage: Stage) -> None:
    """What a publisher does when it learns that Redis has lost data."""
    done = 0
    while True:
        await asyncio.sleep(1.0)
        lost = stage.nemesis.redis_lost_at
        if len(lost) > done and time.time() - lost[-1] > _SETTLE:
            with contextlib.suppress(*TRANSIENT, asyncpg.PostgresError):
                await stage.publisher.make_good(stage.pool, lost[-1])
                done = len(lost)


async def _look_at_everything(stage: Stage, rest: Rest, seconds: float) -> Outcome:
    """All the evidence, taken once, when nothing moves any more."""
    with contextlib.suppress(*TRANSIENT):
        await stage.watcher.look()
    await stage.watcher.nothing_changed()
    await _read_every_route(stage)
    journal = await asyncio.to_thread(stage.topology.evolution.journal.read_text)
    entries = [JournalEntry(**json.loads(line)) for line in journal.splitlines()]
    told = await stage.topology.evolution.ask("GET", "instances")
    logs = {
        f"log of {slot.log.stem}": slot.log.read_text(errors="replace")
        for slot in stage.topology.slots
    }
    evidence = await gather(
        stage.pool,
        stage.redis,
        KeyRing([SECRET]),
        entries,
        {view["name"]: view for view in told["live"]},
        {view["name"]: view for view in told["rows"]},
        published=list(stage.publisher.told.values()),
        excuses=Excuses(_names_by_hand(entries), tuple(stage.nemesis.redis_lost_at)),
        texts=await dumps(stage.pool, stage.redis, logs),
        snapshots=list(stage.watcher.wrong),
        reconciled=True,
    )
    return Outcome(
        stage.plan,
        evidence,
        stage.nemesis,
        stage.publisher,
        stage.watcher,
        stage.topology,
        rest,
        "\n".join(logs.values()),
        seconds,
    )


async def _read_every_route(stage: Stage) -> None:
    """As a routing worker does when a message comes in: what Redis has lost is filled again."""
    cache = ClinicCache(stage.redis, stage.pool)
    for row in await stage.pool.fetch(
        "SELECT config ->> 'instance_name' AS name FROM healthcare.integrations WHERE enabled"
    ):
        await cache.get(row["name"])


def _names_by_hand(entries: list[JournalEntry]) -> dict[str, str]:
    """Instances that somebody else changed: only a person can say what they should be."""
    return {
        str(entry.name): str(entry.cause) for entry in entries if (entry.cause or "") in _BY_HAND
    }


async def _workers_up(pool: Pool, number: int) -> bool:
    found: Any = await pool.fetchval("SELECT count(*) FROM evosaga.workers")
    return bool(found >= number)


async def _until(predicate: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + _UP
    while not await predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_UP:.0f} s for {what}")
        await asyncio.sleep(0.05)
