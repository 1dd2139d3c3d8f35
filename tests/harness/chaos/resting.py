"""After the faults: wait until all is quiet, send again, replay, drill, let the reconciler look.

The drill: in a world where nothing else is wrong workers are killed one by one, which tells how
long a take-over takes.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, Final

from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.database import TRANSIENT
from tests.harness.chaos.faults import QUIET
from tests.harness.chaos.stage import Rest, Stage

_ROUNDS: Final = 3
_IN_A_DRILL: Final = 16
"""Creates that are under way when a worker is killed."""


async def come_to_rest(stage: Stage) -> Rest:
    """Wait, send again what Redis has lost, replay what is parked, drill, reconcile."""
    healed, rest = time.monotonic(), Rest()
    deadline = healed + stage.options.patience
    if stage.nemesis.redis_lost_at:
        await stage.publisher.make_good(stage.pool, stage.nemesis.redis_lost_at[-1])
    for round_ in itertools.count():
        if not await quiet(stage, deadline):
            return rest
        parked = await stage.pool.fetch("SELECT saga_id FROM evosaga.sagas WHERE status = 'failed'")
        if not parked or round_ == _ROUNDS:
            break
        stage.say(f"replaying {len(parked)} parked sagas")
        for row in parked:
            data = {"saga_id": str(row["saga_id"]), "reason": "the world is well again"}
            await stage.publisher.send("replay", str(uuid.uuid4()), "saga.replay", data)
        rest.replayed += len(parked)
        await asyncio.sleep(1.0)
    rest.quiet_after = time.monotonic() - healed
    stage.say(f"all is quiet; {stage.options.drills} workers are killed to see how long it takes")
    for n in range(stage.options.drills):
        await _drill(stage, rest, n)
    await quiet(stage, time.monotonic() + stage.options.patience)
    stage.say("the reconciler has its rounds")
    rest.repaired = await _reconciled(stage)
    return rest


async def quiet(stage: Stage, deadline: float) -> bool:
    """Nothing is open, pending, unread or untold, twice in a row."""
    calm, said = 0, time.monotonic()
    while calm < 2:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.25)
        try:
            left = await _unfinished(stage)
        except (*TRANSIENT, RedisError):
            left = {"servers": 1}
        calm = 0 if left else calm + 1
        if left and time.monotonic() - said > 5.0:
            said = time.monotonic()
            stage.say(", ".join(f"{what}: {number}" for what, number in left.items()))
    return True


async def _unfinished(stage: Stage) -> dict[str, int]:
    row = await stage.pool.fetchrow(_LEFT)
    assert row is not None
    group = await streams.backlog(stage.redis)
    left = {"open sagas": row["open"], "events to be told": row["untold"]}
    if group is None:
        left["group"] = 1
    else:
        left |= {"pending": group.pending, "unread": group.lag or 0}
    return {what: number for what, number in left.items() if number}


async def _reconciled(stage: Stage) -> int:
    """Have every chore look at the healthy world until it finds nothing to do; repairs made."""
    deadline, before = time.monotonic() + stage.options.patience, await _repairs(stage)
    calm = 0
    while calm < 2 and time.monotonic() < deadline:  # a drift is believed at the second look
        since = await stage.pool.fetchval("SELECT clock_timestamp()")
        await stage.pool.execute("UPDATE evosaga.chores SET next_at = now()")
        await _in_time(partial(stage.pool.fetchval, _ALL_DONE, since), deadline)
        at_rest = await quiet(stage, deadline)
        calm = calm + 1 if at_rest and not await stage.pool.fetchval(_BUSY) else 0
        await asyncio.sleep(QUIET)
    return await _repairs(stage) - before


async def _repairs(stage: Stage) -> int:
    return int(await stage.pool.fetchval(_REPAIRS))


async def _drill(stage: Stage, rest: Rest, n: int) -> None:
    """Kill the worker that has most to do, and wait until others have done it."""
    rng = Random(f"{stage.plan.seed}/drill/{n}")
    slow = {"mode": "slow", "operation": "create", "seconds": 0.8, "times": _IN_A_DRILL}
    await stage.topology.evolution.ask("POST", "faults", **slow)
    for _ in range(_IN_A_DRILL):
        data = {
            "organization_id": _uuid(rng),
            "clinic_id": _uuid(rng),
            "name": "Drill",
            "channel": "EVOLUTION",
        }
        await stage.publisher.send("create", _uuid(rng), "integration.create", data)
    owner = await _busiest(stage)
    slot = next((s for s in stage.topology.slots if owner and f"-{s.pid}-" in owner), None)
    if slot is not None:
        slot.doomed = "drill"
        rest.drilled[slot.pid] = time.time()
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, signal.SIGKILL)
    await _in_time(partial(stage.pool.fetchval, _NONE_OPEN), time.monotonic() + 60.0)
    await stage.topology.evolution.ask("DELETE", "faults")


async def _in_time(question: Callable[[], Awaitable[Any]], deadline: float) -> bool:
    """Ask until the answer is yes; False when that was too late."""
    while True:
        if await question():
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)


async def _busiest(stage: Stage) -> str | None:
    """The worker with most attempts under way, as soon as there is one."""
    for _ in range(1000):
        owner: Any = await stage.pool.fetchval(_OWNER)
        if owner is not None:
            return str(owner)
        await asyncio.sleep(0.02)
    return None


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


_NONE_OPEN: Final = """
SELECT NOT EXISTS (SELECT FROM evosaga.sagas WHERE status IN ('running', 'compensating'))
"""
_LEFT: Final = """
SELECT (SELECT count(*) FROM evosaga.sagas WHERE status IN ('running', 'compensating')) AS open,
       (SELECT coalesce(max(position), 0) FROM evosaga.saga_events)
           - (SELECT position FROM evosaga.relay WHERE stream = 'evosaga:events')
           + (SELECT count(*) FROM evosaga.notices WHERE published_at IS NULL) AS untold
"""
_ALL_DONE: Final = "SELECT bool_and(last_run > $1) FROM evosaga.chores"
_BUSY: Final = """
SELECT bool_or(last_result ->> 'aborted' IS NOT NULL OR last_result ->> 'failed' IS NOT NULL
    OR (last_result ->> 'repairs')::int > 0 OR (last_result ->> 'waiting')::int > 0)
FROM evosaga.chores
"""
_REPAIRS: Final = "SELECT count(*) FROM evosaga.sagas WHERE command_id LIKE 'repair:%'"
_OWNER: Final = """
SELECT owner FROM evosaga.sagas WHERE status = 'running' AND owner IS NOT NULL
GROUP BY owner ORDER BY count(*) DESC, owner LIMIT 1
"""
