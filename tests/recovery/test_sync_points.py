"""A worker dies at every sync point in turn, and another one finishes what it began.

In the suite it dies where something is lost that nothing else shows, ``long`` has every point.

Afterwards the three stores agree, and everything that the chaos run checks
(``tests/harness/chaos``) holds: the histories obey the laws, no instance was made twice, no
stranger's was touched.
"""

import asyncio
import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM
from typing import Any

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.engine.projection
import evosaga.orchestrator.engine.quarantine
import evosaga.orchestrator.engine.recovery
from evosaga.events import syncpoints
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.registry import SagaRegistry
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import SECRET
from tests.harness.chaos.checks import CHECKS
from tests.harness.chaos.checks.rest import history_of
from tests.harness.chaos.evidence import Published, gather
from tests.harness.chaos.victim import HURRIED, impatient, steady, victim
from tests.support.driving import (
    contradictions,
    count,
    create,
    delete,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.sampled import sampled
from tests.support.waiting import eventually

COMMAND = ["cmd.read", "acc.pre", "acc.post", "ack.post"]
RELAY = ["rel.read", "rel.xadd", "rel.mark"]


def around(prefix: str, *steps: str) -> list[str]:
    """The three moments of steps outside our own Postgres."""
    return [
        f"{prefix}{moment}:{step}"
        for step in steps
        for moment in ("start.post", "eff.post", "out.post")
    ]


CREATE = [
    *COMMAND,
    *around("", "evolution", "cache", "notify", "pair"),
    "out.post:postgres",
    *RELAY,
]
DELETE = [*COMMAND, "out.post:mark", *around("", "evolution", "cache", "notify"), *RELAY]
DELETE += ["out.post:postgres"]
UNDO = ["out.post:cache", *around("comp.", "cache", "evolution"), "comp.out.post:postgres"]
STORIES = [
    *(("create", point) for point in CREATE),
    *(("delete", point) for point in DELETE),
    *(("undo", point) for point in UNDO),
]
SUITE = [
    # A command that is committed and not acknowledged, an event that is told and not marked.
    ("create", "acc.post"),
    ("create", "rel.xadd"),
    # An effect of which nothing is recorded, in both directions and past the pivot; an intent
    # without an effect.
    ("create", "start.post:evolution"),
    ("create", "eff.post:evolution"),
    ("undo", "comp.eff.post:evolution"),
    ("delete", "eff.post:evolution"),
]
"""Where a worker is killed in the suite; ``make chaos`` begins with all the rest."""
PAIRED = "WHATSAPP-BAILEYS"
"""The channel whose creates have something to do in their last step."""
ZOMBIES = ["acc.pre", "start.post:evolution", "eff.post:evolution", "start.post:cache", "rel.read"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in HURRIED:
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """A dead worker is missed within half a second."""
    return settings.model_copy(
        update={"lease_seconds": 0.5, "quiet_seconds": 0.2, "watch_after": (0.3, 0.4, 0.5, 0.6)}
    )


@pytest.fixture
def at(tmp_path: Path) -> Any:
    """Arms one sync point, once."""
    return lambda point, do: {"at": point, "do": do, "once": str(tmp_path / "struck")}


async def begin(
    story: str,
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    channel: str = "EVOLUTION",
) -> dict[str, Any]:
    """What has to be there before; the command that the story is about."""
    evolution.foreign("a-strangers-instance")
    if story == "delete":
        async with running_worker(settings, impatient()):
            made = await outcome(pool, await publish(redis, create()))
        return delete(str(made.instance_name))
    command = create(channel=channel)
    if story == "undo":
        # The mark of a removal has the wrong type, so the step that fills the cache stumbles.
        await redis.rpush(f"evosaga:removed:wa-{command['id']}", "not a string")
    return command


async def judge(
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    command: dict[str, Any],
    registry: SagaRegistry,
) -> None:
    """The saga has ended as it should, and every check of the chaos run passes."""
    await eventually(lambda: nothing_pending(redis), message="every message to be acknowledged")
    await eventually(lambda: _told(pool), message="every event to be relayed")
    evidence = await gather(
        pool,
        redis,
        KeyRing([SECRET]),
        evolution.journal,
        {name: asdict(view) for name, view in evolution.live().items()},
        {name: asdict(view) for name, view in evolution.rows().items()},
        published=[Published(command["id"], "create", json.dumps(command).encode(), 0.0)],
        registry=registry,
    )
    broken = [violation for check in CHECKS for violation in check(evidence)]
    told = history_of(evidence, uuid.UUID(command["id"]))
    assert not broken, "\n".join([*map(str, broken), *told])
    assert "a-strangers-instance" in evolution.rows()
    assert await contradictions(pool) == []


async def _told(pool: Pool) -> bool:
    return bool(
        await pool.fetchval(
            "SELECT (SELECT position FROM evosaga.relay) = max(position) FROM evosaga.saga_events"
        )
    )


async def ended(pool: Pool, redis: Redis, command: dict[str, Any]) -> str:
    """How the command's saga and all that follow from it have ended."""
    saga = await outcome(pool, command["id"])

    async def all_over() -> bool:
        query = "SELECT count(*) FROM evosaga.sagas WHERE status IN ('running', 'compensating')"
        return await count(pool, query) == 0

    await eventually(all_over, message="all sagas to end")
    return saga.status


@pytest.mark.fault("i1")
@pytest.mark.parametrize(("story", "point"), sampled(STORIES, keep=SUITE, id="-".join))
async def test_a_worker_is_killed_at_a_sync_point_and_another_one_finishes(
    story: str,
    point: str,
    quick: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    at: Any,
    tmp_path: Path,
) -> None:
    channel = PAIRED if point.endswith(":pair") else "EVOLUTION"
    command = await begin(story, quick, pool, redis, evolution, channel)
    await publish(redis, command)
    first = victim(quick, [at(point, "kill")], tmp_path / "log")
    await eventually(lambda: first.exitcode is not None, 20, message=f"it to reach {point}")
    assert first.exitcode == -SIGKILL, (tmp_path / "log").read_text()
    async with running_worker(quick, impatient()):
        status = await ended(pool, redis, command)
        assert status == ("compensated" if story == "undo" else "completed")
        await judge(pool, redis, evolution, command, impatient())


@pytest.mark.fault("b6", "b7", "b8", "g2")
@pytest.mark.parametrize("point", sampled(ZOMBIES, keep=["eff.post:evolution"]))
async def test_a_worker_that_stops_at_a_sync_point_and_wakes_up_late_does_no_harm(
    point: str,
    quick: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    at: Any,
    tmp_path: Path,
) -> None:
    command = await begin("create", quick, pool, redis, evolution)
    await publish(redis, command)
    zombie = victim(quick, [at(point, "stop")], tmp_path / "log")
    await eventually((tmp_path / "struck").exists, 20, message=f"it to reach {point}")
    assert zombie.pid is not None
    try:
        async with running_worker(quick, impatient()):
            assert await ended(pool, redis, command) == "completed"
            os.kill(zombie.pid, SIGCONT)
            os.kill(zombie.pid, SIGTERM)
            await eventually(lambda: zombie.exitcode is not None, 20, message="it to leave")
            assert zombie.exitcode == 0, (tmp_path / "log").read_text()
            await judge(pool, redis, evolution, command, impatient())
    finally:
        zombie.kill()
    assert len(evolution.journal.requests("create")) == 1


@pytest.mark.fault("i1")
@pytest.mark.parametrize("story", sampled(["create", "delete", "undo"], keep=["create", "undo"]))
async def test_every_sync_point_raises_once_and_the_saga_ends_as_it_should(
    story: str,
    quick: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A bug of ours anywhere costs an attempt, a lease or a worker, and never the truth."""
    monkeypatch.setattr(evosaga.orchestrator.engine.projection, "LEASE_MARGIN", -9.5)
    monkeypatch.setattr(evosaga.orchestrator.engine.recovery, "_GRACE", 0.2)
    monkeypatch.setattr(evosaga.orchestrator.engine.quarantine, "FIRST_PAUSE", 0.1)
    command = await begin(story, quick, pool, redis, evolution, PAIRED)
    # A message that is stumbled over three times is a dead letter, so one of these is left out.
    spared = {"create": "cmd.read", "delete": "acc.post"}.get(story)
    points = [point for of, point in STORIES if of == story and point != spared]
    syncpoints.arm([{"at": p, "do": "raise", "once": str(tmp_path / p)} for p in points])
    try:
        await publish(redis, command)
        await end_of_many(quick, pool, command["id"])
    finally:
        syncpoints.arm([])
    async with running_worker(quick, steady()):
        status = await ended(pool, redis, command)
        assert status == ("compensated" if story == "undo" else "completed")
        await judge(pool, redis, evolution, command, steady())
    assert set(os.listdir(tmp_path)) == set(points)


async def end_of_many(settings: Settings, pool: Pool, reference: str) -> None:
    """Run worker after worker, since some of their parts break, until the saga is over."""
    for _ in range(10):
        async with running_worker(settings, steady()) as worker:
            over = asyncio.ensure_future(outcome(pool, reference, 30))
            ends: list[asyncio.Future[Any]] = [over, worker.failed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                await over
                return
            over.cancel()
    raise AssertionError("ten workers broke")
