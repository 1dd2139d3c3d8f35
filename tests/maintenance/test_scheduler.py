"""Chores: done when they are due, by one worker at a time, and by another when that one dies."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.scheduler import (
    Job,
    JobResult,
    Scheduler,
    SharedJob,
    StillLeader,
)
from evosaga.orchestrator.whatsapp.jobs import jobs_of
from tests.support.waiting import eventually
from tests.whatsapp.reconciliation.conftest import Rows


@dataclass
class Work:
    """A chore that counts, and can be held up."""

    done: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    came: JobResult = field(default_factory=JobResult)
    went_on: list[bool] = field(default_factory=list)

    def chore(self, who: str, every: float = 0.2) -> Job:
        async def work(may_go_on: StillLeader) -> JobResult:
            self.done.append(who)
            await self.gate.wait()
            self.went_on.append(may_go_on())
            return self.came

        return Job("sweep", every, work)


@contextlib.asynccontextmanager
async def at_work(*chores: Scheduler) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(one.run()) for one in chores]
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def rows(pool: Pool) -> Rows:
    return Rows(pool)


async def row(pool: Pool) -> dict[str, Any]:
    found = await pool.fetchrow("SELECT * FROM evosaga.chores WHERE name = 'sweep'")
    return dict(found) if found else {}


async def test_a_chore_is_done_again_and_again_and_says_what_came_of_it(pool: Pool) -> None:
    work = Work(came=JobResult({"found": 3}))
    work.gate.set()
    async with at_work(Scheduler(pool, "one", [work.chore("one")])):
        await eventually(lambda: len(work.done) >= 3)
    told = await row(pool)
    assert json.loads(told["last_result"]) == {"found": 3}
    assert told["last_run"] is not None


@pytest.mark.fault("n5")
async def test_one_worker_at_a_time_does_it(pool: Pool) -> None:
    work = Work()
    names = ("one", "two", "three")
    async with at_work(*(Scheduler(pool, name, [work.chore(name)]) for name in names)):
        await eventually(lambda: len(work.done) == 1)
        leader = (await row(pool))["leader"]
        assert [leader] == work.done
        await asyncio.gather(
            *(Scheduler(pool, f"late-{n}", []).do(work.chore("x")) for n in range(5))
        )
        assert len(work.done) == 1, "nobody else begins while it is being done"
        work.gate.set()
        await eventually(lambda: len(work.done) > 3)
    assert all(work.went_on)


@pytest.mark.fault("n5")
async def test_when_the_leader_dies_another_begins_the_chore_anew(pool: Pool) -> None:
    stuck, fresh = Work(), Work()
    fresh.gate.set()
    dead = Scheduler(pool, "dead", [stuck.chore("dead")], lease=0.6)
    async with at_work(dead) as [task]:
        await eventually(lambda: stuck.done == ["dead"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with at_work(Scheduler(pool, "heir", [fresh.chore("heir")], lease=0.6)):
            await eventually(lambda: len(fresh.done) >= 1)
    assert (await row(pool))["leader"] in (None, "heir")


@pytest.mark.fault("n5")
async def test_a_leader_that_was_paused_is_told_to_stop(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    paused = Scheduler(pool, "paused", [work.chore("paused")], lease=0.6)

    async def nothing(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Scheduler, "_keep", nothing)  # it doesn't run, so it doesn't renew
    async with at_work(paused):
        await eventually(lambda: work.done == ["paused"])
        heir = Work()
        heir.gate.set()
        taken = Scheduler(pool, "heir", [], lease=5.0)
        await eventually(lambda: taken.do(heir.chore("heir")), message="the lease to be over")
        work.gate.set()
        await eventually(lambda: bool(work.went_on))
        assert work.went_on == [False]
        told = await row(pool)
        assert told["leader"] is None, "what the paused one says counts no more"


async def test_a_lease_is_kept_while_the_chore_takes_long(pool: Pool) -> None:
    work, other = Work(), Work()
    other.gate.set()
    async with at_work(Scheduler(pool, "one", [work.chore("one")], lease=0.6)):
        await eventually(lambda: work.done == ["one"])
        first = (await row(pool))["lease_until"]

        async def renewed() -> bool:
            return bool((await row(pool))["lease_until"] > first)

        await eventually(renewed)
        assert not await Scheduler(pool, "two", []).do(other.chore("two"))


async def test_a_chore_that_stumbles_or_meets_an_outage_is_no_reason_to_stop(pool: Pool) -> None:
    tries: list[int] = []

    async def work(_: StillLeader) -> JobResult:
        tries.append(1)
        if len(tries) == 1:
            raise ZeroDivisionError
        if len(tries) == 2:
            raise asyncpg.CannotConnectNowError
        return JobResult({"well": True})

    chores = Scheduler(pool, "one", [Job("sweep", 0.2, work)])
    async with at_work(chores) as [task]:
        await eventually(lambda: len(tries) >= 2)

        async def well() -> bool:
            told = (await row(pool)).get("last_result") or "{}"
            return bool(json.loads(told) == {"well": True})

        await eventually(well)
        assert not task.done()


async def test_what_could_not_be_concluded_is_looked_at_again_soon(pool: Pool) -> None:
    work = Work(came=JobResult({"aborted": "why"}, again=0.1))
    work.gate.set()
    await pool.execute("INSERT INTO evosaga.chores (name, next_at) VALUES ('sweep', now())")
    assert await Scheduler(pool, "one", []).do(work.chore("one", every=86400.0))
    due = await pool.fetchval("SELECT extract(epoch FROM next_at - now()) FROM evosaga.chores")
    assert due < 60


async def test_a_shorter_period_takes_effect_at_once(pool: Pool) -> None:
    work = Work()
    work.gate.set()
    await pool.execute(
        "INSERT INTO evosaga.chores (name, next_at) VALUES ('sweep', now() + interval '1 day')"
    )
    async with at_work(Scheduler(pool, "one", [work.chore("one", every=0.3)])):
        await eventually(lambda: len(work.done) >= 1)


async def test_the_worker_keeps_house_and_settings_turn_it_off(
    settings: Settings, pool: Pool, evolution: SimulatedEvolution, rows: Rows
) -> None:
    evolution.put("clinic-sol", phone="5511987654321")
    await rows.insert("clinic-sol", status="pending")
    often = settings.model_copy(
        update={"health_every": 0.3, "orphans_every": 0.3, "reconcile_every": 0.3}
    )
    async with running_worker(often):

        async def told() -> bool:
            done = await pool.fetch("SELECT name FROM evosaga.chores WHERE last_result IS NOT NULL")
            return {row["name"] for row in done} == {"reconcile", "orphans", "health"}

        await eventually(told, 20)

        async def connected() -> bool:
            return bool((await rows.of("clinic-sol"))["status"] == "connected")

        await eventually(connected, 20)
    off = settings.model_copy(
        update={"health_every": 0.0, "orphans_every": 0.0, "reconcile_every": 0.0}
    )
    assert jobs_of(off, pool, None, None) == []  # type: ignore[arg-type]
    async with running_worker(off) as worker:
        await asyncio.sleep(0)
        assert not worker.failed.done()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("older_names", "clinic-*", "EVOSAGA_OLDER_NAMES"),
        ("older_names", "{organization_id}-{clinic_id}", "EVOSAGA_OLDER_NAMES"),
        ("alert_url", "ftp://pager", "EVOSAGA_ALERT_URL"),
        ("health_every", -1, "EVOSAGA_HEALTH_EVERY"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(_env_file=None, **{name: value})


async def test_workers_share_the_parts_of_a_round_and_each_is_done_once(pool: Pool) -> None:
    done: list[tuple[str, str]] = []
    both = asyncio.Barrier(2)

    def shared(who: str) -> Scheduler:
        async def work(part: str, _: StillLeader) -> JobResult:
            if len(done) < 2:
                async with asyncio.timeout(20):
                    await both.wait()  # the first two parts are done by two workers at once
            done.append((who, part))
            return JobResult({"part": part})

        return Scheduler(pool, who, [SharedJob("look", 3600.0, [f"s{n}" for n in range(9)], work)])

    async with at_work(shared("one")):
        await eventually(lambda: known_parts(pool, 9))
    # Whoever is started looks at once, and after that every five seconds.
    await pool.execute("UPDATE evosaga.chores SET next_at = now()")
    async with at_work(shared("one"), shared("two")):
        await eventually(lambda: len(done) == 9, 30)
    assert sorted(part for _, part in done) == [f"s{n}" for n in range(9)]
    assert {who for who, _ in done} == {"one", "two"}
    results = await pool.fetch("SELECT name, last_result FROM evosaga.chores")
    assert all(json.loads(r["last_result"])["part"] == r["name"].partition("/")[2] for r in results)


async def known_parts(pool: Pool, number: int) -> bool:
    there: int = await pool.fetchval("SELECT count(*) FROM evosaga.chores")
    return there == number


async def test_a_part_whose_worker_dies_is_done_by_another(pool: Pool) -> None:
    done: list[str] = []

    async def work(part: str, _: StillLeader) -> JobResult:
        done.append(part)
        return JobResult()

    await pool.execute(
        "INSERT INTO evosaga.chores (name, leader, lease_until, next_at) "
        "VALUES ('look/s1', 'dead', now() - interval '1 s', now() - interval '1 minute')"
    )
    async with at_work(Scheduler(pool, "heir", [SharedJob("look", 3600.0, ["s1"], work)])):
        await eventually(lambda: done == ["s1"], 20)
