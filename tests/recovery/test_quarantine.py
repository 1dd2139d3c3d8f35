"""B15: what a worker stumbles over is set aside, said so, tried again soon, and holds nobody up."""

import itertools
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.engine.commit
import evosaga.orchestrator.engine.quarantine
from evosaga.events import syncpoints
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine import decider
from evosaga.orchestrator.engine.lease import Lease, LeaseLost
from evosaga.orchestrator.engine.state import State
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.rebuild import rebuild
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.definition import Saga
from evosaga.sagas.registry import discover
from tests.support.driving import contradictions, count, create, outcome, publish, story
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evosaga.orchestrator.engine.quarantine, "FIRST_PAUSE", 0.1)


@pytest.mark.fault("b15")
async def test_a_bug_of_ours_quarantines_its_saga_which_goes_on_once_it_is_mended(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, genuine = create(), decider.advance
    broken = {command["id"]}
    stumbled = 0

    def advance(saga: Saga, state: State) -> Any:
        nonlocal stumbled
        begun = state.sequence > 1  # the first commit is that of accepting it
        if begun and state.start and state.start.command_id in broken:
            stumbled += 1
            raise LookupError("secret-of-a-stranger")
        return genuine(saga, state)

    monkeypatch.setattr(evosaga.orchestrator.engine.commit, "advance", advance)
    found: list[SagaView] = []

    async def said_so() -> bool:
        view = await find_saga(pool, command["id"])
        found[:] = [view] if view and "(3 times now)" in (view.message or "") else []
        return bool(found)

    async with running_worker(settings):
        await publish(redis, command)
        others = [await publish(redis, create()) for _ in range(3)]
        for other in others:
            assert (await outcome(pool, other)).status == "completed"
        await eventually(said_so, message="the row to say that it is stumbled over")
        told = await why_of(pool, discover(), found[0], explainer())
        assert (await rebuild(pool, discover(), check=True)).different == 0
        broken.clear()
        assert (await outcome(pool, command["id"])).status == "completed"
    assert (found[0].status, found[0].code) == ("running", "stumbled")
    assert "LookupError at recovery/test_quarantine.py" in str(found[0].message)
    assert "secret" not in str(found[0].message)
    assert told.headline.startswith("It is set aside: it failed in a worker")
    assert told.cure is not None
    assert 3 <= stumbled <= 6, "the pauses grow"
    assert await contradictions(pool) == []
    assert len(evolution.rows()) == 4


async def test_a_stumble_after_a_commit_costs_a_moment_and_no_attempt(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    syncpoints.arm([{"at": "out.post:postgres", "do": "raise"}])
    try:
        async with running_worker(settings):
            saga = await outcome(pool, await publish(redis, create()), timeout=8)
    finally:
        syncpoints.arm([])
    assert saga.status == "completed"
    lost = "SELECT count(*) FROM evosaga.saga_events WHERE data ->> 'code' = 'worker_lost'"
    # The intent of the next step was committed with it, and nobody knows what came of that.
    assert await count(pool, lost) == 1
    assert len(evolution.journal.requests("create")) == 1


@pytest.mark.fault("b5")
async def test_an_attempt_that_was_not_begun_for_want_of_a_lease_burns_nothing(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine, asked = Lease.check, itertools.count(1)

    def check(self: Lease) -> None:
        if next(asked) == 1:
            raise LeaseLost("it was out of touch")
        genuine(self)

    monkeypatch.setattr(Lease, "check", check)
    async with running_worker(settings):
        saga = await outcome(pool, await publish(redis, create()))
    assert saga.status == "completed"
    assert (await story(pool, saga))[:3] == [
        "saga.started",
        "step.started evolution",
        "step.failed evolution",
    ]
    failed = await pool.fetchrow(
        "SELECT data ->> 'outcome' AS outcome, data ->> 'code' AS code, data ->> 'in_doubt' AS "
        "doubt, data ->> 'lost' AS lost FROM evosaga.saga_events "
        "WHERE saga_id = $1 AND type = 'step.failed'",
        UUID(str(saga.saga_id)),
    )
    assert failed is not None
    assert tuple(failed) == ("held", "lease_lost", "false", None)
    assert len(evolution.journal.entries) == 2, "one create and one look, none before"


@pytest.mark.fault("b15")
async def test_who_stumbles_after_each_attempt_is_left_alone_for_longer_each_time(
    settings: Settings, pool: Pool, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the attempt before was lost can always be said, so that is no sign of getting on."""
    genuine, broken = decider.advance, True

    def advance(saga: Saga, state: State) -> Any:
        if broken and state.progress("cache").done:
            raise LookupError
        return genuine(saga, state)

    monkeypatch.setattr(evosaga.orchestrator.engine.commit, "advance", advance)

    async def third_time() -> bool:
        view = await find_saga(pool, id_)
        return bool(view and "(3 times now)" in (view.message or ""))

    async with running_worker(settings):
        id_ = await publish(redis, create())
        await eventually(third_time)
        broken = False
        assert (await outcome(pool, id_)).status == "completed"
