"""Old and new releases beside each other: nothing is stranded, and what would be is said before."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.deploy_check import check_deploy
from evosaga.orchestrator.queries.sagas import SagaView, Unreadable, find_saga, history
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.definition import Step, retryable
from evosaga.sagas.outcome import Done, Outcome
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from evosaga.sagas.whatsapp.services import Context
from tests.control.conftest import Gossip, parked
from tests.support.commandline import Evosaga
from tests.support.driving import count, create, outcome, publish, story
from tests.support.waiting import eventually


async def thank(_: Context) -> Outcome:
    return Done()


def with_v2(*more: Step) -> SagaRegistry:
    """A release in which a create has another step, as version 2 beside the old one."""
    old = discover()
    first = old.by_command["integration.create"]
    second = replace(first, version=2, steps=(*first.steps, *more))
    return registry_of([*old.versions.values(), second])


NEW = with_v2(retryable("thank", do=thank))
OLD = discover()


async def held(pool: Pool, redis: Redis, evolution: SimulatedEvolution) -> SagaView:
    """A create that waits because Evolution wants a licence."""
    evolution.arm("licence", operation="create", times=None)
    id_ = await publish(redis, create())

    async def waits() -> bool:
        saga = await find_saga(pool, id_)
        return saga is not None and saga.code is not None

    await eventually(waits, message="the create to be held")
    saga = await find_saga(pool, id_)
    assert saga is not None
    return saga


@pytest.mark.fault("m5")
async def test_what_began_under_a_version_finishes_under_it(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings, OLD):
        saga = await held(pool, redis, evolution)
    evolution.disarm()
    async with running_worker(settings, NEW):
        finished = await outcome(pool, str(saga.saga_id), 40)
        fresh = await outcome(pool, await publish(redis, create()))
    assert (finished.status, finished.version) == ("completed", 1)
    assert "step.succeeded thank" not in await story(pool, finished)
    assert (fresh.status, fresh.version) == ("completed", 2)
    assert "step.succeeded thank" in await story(pool, fresh)


@pytest.mark.fault("m6", "m7")
async def test_an_old_worker_leaves_a_newer_version_alone_until_one_that_knows_it_is_back(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A deploy that is rolled back: the saga waits, says so, and is no failure."""
    async with running_worker(settings, NEW):
        saga = await held(pool, redis, evolution)
    evolution.disarm()
    before = await history(pool, saga.saga_id)
    capfd.readouterr()
    async with running_worker(settings, OLD):
        # It drives others meanwhile, and sweeps many times.
        for _ in range(3):
            assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        await pool.execute(
            "UPDATE evosaga.sagas SET next_at = now() - interval '1 hour' WHERE saga_id = $1",
            saga.saga_id,
        )
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        view = await find_saga(pool, str(saga.saga_id))
        assert view is not None
        told = await why_of(pool, OLD, view)
        assert told.headline == "This release does not know create-integration v2."
        assert "None of the 1 living workers has that definition." in told.details
        assert await history(pool, saga.saga_id) == before
    logged = "".join(capfd.readouterr())
    assert str(saga.saga_id) not in logged, "it is not even looked at"
    async with running_worker(settings, NEW):
        finished = await outcome(pool, str(saga.saga_id), 40)
    assert (finished.status, finished.version) == ("completed", 2)


async def test_workers_say_which_definitions_they_have(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async with running_worker(settings, NEW):
        knows = await pool.fetchval("SELECT knows FROM evosaga.workers")
    assert {"create-integration/1", "create-integration/2"} <= set(knows)


def changed(*steps: Step) -> SagaRegistry:
    """A release that changed a create in place, which must not be done."""
    create = OLD.by_command["integration.create"]
    others = [saga for saga in OLD.versions.values() if saga is not create]
    return registry_of([*others, replace(create, steps=steps)])


STEPS: Sequence[Step] = OLD.by_command["integration.create"].steps


async def test_check_deploy_holds_every_open_saga_against_this_release(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    gossip: Gossip,
    evosaga: Evosaga,
) -> None:
    nothing = await evosaga("check-deploy")
    assert (nothing.code, nothing.out) == (0, "no saga is open: any release may take over\n")
    async with running_worker(settings, gossip.registry()):
        stuck = await parked(pool, redis)
        gossip.refuses = False
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"

    (verdict,) = await check_deploy(pool, OLD)
    assert (verdict.fits, verdict.open) == (True, {"failed": 1})
    fits = await evosaga("check-deploy")
    assert fits.code == 0
    assert fits.lines[1].split() == ["create-integration", "v1", "1", "failed", "fits"]

    (verdict,) = await check_deploy(pool, registry_of([]))
    assert (verdict.fits, verdict.known) == (False, False)

    renamed = [replace(s, name="tell") if s.name == "notify" else s for s in STEPS]
    (verdict,) = await check_deploy(pool, changed(*renamed))
    assert verdict.stranded == {
        stuck.saga_id: "its history has a step 'notify', and the definition has none"
    }
    (verdict,) = await check_deploy(pool, with_v2(retryable("thank", do=thank)))
    assert verdict.fits, "a version beside the old one is how it is done"

    await pool.execute("UPDATE evosaga.sagas SET version = 9")
    refused = await evosaga("check-deploy", "--json")
    assert refused.code == 1
    assert refused.json["fits"] is False
    assert [saga["known"] for saga in refused.json["sagas"]] == [False]
    assert "would leave sagas behind" in refused.err


@pytest.mark.fault("b15", "m8")
async def test_an_event_of_an_unknown_type_sets_its_saga_aside_and_no_other(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    evosaga: Evosaga,
) -> None:
    async with running_worker(settings):
        saga = await held(pool, redis, evolution)
    await pool.execute(
        "INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id) "
        """VALUES ($1, $2, 'step.foreseen', '{"step": "evolution"}', 'c')""",
        saga.saga_id,
        saga.sequence,
    )
    await pool.execute(
        "UPDATE evosaga.sagas SET next_sequence = next_sequence + 1, next_at = now()"
    )
    evolution.disarm()
    async with running_worker(settings):
        for _ in range(3):
            assert (await outcome(pool, await publish(redis, create()))).status == "completed"
    events = await count(
        pool, "SELECT count(*) FROM evosaga.saga_events WHERE saga_id = $1", saga.saga_id
    )
    assert events == saga.sequence + 1, "nothing was skipped and nothing went on"
    view = await find_saga(pool, str(saga.saga_id))
    assert view is not None
    assert view.status == "running"
    told = await why_of(pool, discover(), view, explainer())
    assert told.headline.startswith("It is set aside: its history has an event of a type")
    with pytest.raises(Unreadable):
        await history(pool, saga.saga_id)
    (verdict,) = await check_deploy(pool, discover())
    assert list(verdict.stranded) == [saga.saga_id]
    listed, explained, events_ = [
        await evosaga(*arguments)
        for arguments in (["list"], ["why", str(saga.saga_id)], ["events", str(saga.saga_id)])
    ]
    assert str(saga.saga_id) in listed.out
    assert "It is set aside" in explained.out
    assert events_.code == 2
    assert "has an event this release does not know" in events_.err


async def test_events_are_told_again_from_the_command_line(
    settings: Settings, pool: Pool, redis: Redis, evosaga: Evosaga
) -> None:
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
    entries: Any = await redis.xrange("evosaga:events")
    told = len({json.loads(fields[b"data"])["id"] for _, fields in entries})  # some twice, maybe
    assert told == saga.sequence
    await redis.xtrim("evosaga:events", maxlen=0)
    again = await evosaga("events", "republish", "--since=1h")
    assert again.code == 0, again.err
    assert f"told {told} events again on evosaga:events" in again.out
    assert await redis.xlen("evosaga:events") == told
    until = (saga.created_at + timedelta(minutes=1)).isoformat()
    stretch = await evosaga("events", "republish", "--since=2h", f"--until={until}", "--json")
    assert (stretch.code, stretch.json["events"]) == (0, told)
    wrong = await evosaga("events", "republish", "--since=1h", "--until=2h")
    assert wrong.code == 2
    assert "--until must be later than --since" in wrong.err
    usage = await evosaga("events", "republish")
    assert usage.code == 2
    assert "--since" in usage.err
    unknown = await evosaga("events", str(uuid.uuid4()))
    assert "no saga, command or instance" in unknown.err
