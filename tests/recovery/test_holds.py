"""What is held for long writes no event at each try, and still says why and when it goes on."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine import retries
from evosaga.orchestrator.engine.repeated_holds import with_hold
from evosaga.orchestrator.engine.state import replay
from evosaga.orchestrator.maintenance.rebuild import rebuild
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.whatsapp.explain import explainer
from evosaga.sagas.outcome import Done, Held, Outcome
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from evosaga.sagas.whatsapp.services import Context
from tests.support.driving import create, outcome, publish, story
from tests.support.laws import chronicle
from tests.support.waiting import eventually


class Dependency:
    """A first step that is held until the test lets it be done."""

    def __init__(self) -> None:
        self.tries = 0
        self.open = False
        self.in_doubt = False
        self.attempts: set[int] = set()

    async def do(self, ctx: Context) -> Outcome:
        self.tries += 1
        self.attempts.add(ctx.attempt)
        if self.open:
            return Done({"token_hash": "0" * 16})
        said = f"it is away for the {self.tries}. time"
        return Held("it_is_away", said, 0.05, in_doubt=self.in_doubt)

    def registry(self) -> SagaRegistry:
        return registry_of(
            replace(
                saga,
                steps=(replace(saga.steps[0], do=self.do), *saga.steps[1:]),
            )
            if saga.name == "create-integration"
            else saga
            for saga in discover().versions.values()
        )


@pytest.fixture(autouse=True)
def _short_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_HOLD_CAP", 0.1)


async def held(pool: Pool, id_: str, times: int) -> SagaView:
    """The saga once it was held so often in a row."""
    found: list[SagaView] = []

    async def is_so() -> bool:
        view = await find_saga(pool, id_)
        found[:] = [view] if view and (view.holds or 0) >= times else []
        return bool(found)

    await eventually(is_so, 60, message=f"{times} holds in a row")
    return found[0]


async def test_a_saga_that_is_held_again_and_again_writes_three_events_and_goes_on(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    dependency = Dependency()
    known = dependency.registry()
    async with running_worker(settings, known):
        id_ = await publish(redis, create())
        view = await held(pool, id_, 4)
        events = await history(pool, view.saga_id)
        told = await why_of(pool, known, view, explainer())
        differs = (await rebuild(pool, known, check=True)).wrong
        dependency.open = True
        done = await outcome(pool, id_, 60)
    assert [r.event.type for r in events] == [
        "saga.started",
        "step.started",
        "step.failed",
        "step.started",
    ]
    assert (view.status, view.step, view.code) == ("running", "evolution", "it_is_away")
    assert str(view.message).startswith("it is away for the ")
    assert view.message != "it is away for the 1. time"
    assert told.headline == f"It waits: {view.message}."
    assert told.next_at == view.next_at
    assert f"{view.holds} times" in told.details[0]
    assert differs == {}
    assert done.status == "completed"
    assert dependency.attempts == {1}, "no attempt was burned"
    assert [line for line in await story(pool, done) if line.endswith("evolution")] == [
        "step.started evolution",
        "step.failed evolution",
        "step.started evolution",
        "step.succeeded evolution",
    ]
    saga = known.find("create-integration", done.version)
    assert saga is not None
    chronicle(saga, [r.event for r in await history(pool, done.saga_id)])


async def test_a_cancel_of_a_saga_that_is_held_again_is_obeyed_at_once(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    dependency = Dependency()
    async with running_worker(settings, dependency.registry()):
        id_ = await publish(redis, create())
        view = await held(pool, id_, 2)
        wish = {"id": f"cancel-{id_}", "type": "saga.cancel", "data": {"saga_id": id_}}
        await streams.publish_command(redis, wish)
        done = await outcome(pool, id_, 60)
    assert done.status == "compensated"
    assert done.code == "cancelled"
    told = [r.event for r in await history(pool, view.saga_id)]
    assert [e for e in told if getattr(e, "outcome", None) == "unknown"] == []


async def test_the_first_hold_that_may_have_had_its_effect_is_an_event(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    dependency = Dependency()
    async with running_worker(settings, dependency.registry()):
        id_ = await publish(redis, create())
        view = await held(pool, id_, 2)
        dependency.in_doubt = True

        async def doubted() -> bool:
            told = [r.event for r in await history(pool, view.saga_id)]
            return replay(told).progress("evolution").in_doubt

        await eventually(doubted, 60)
        before = dependency.tries
        await eventually(lambda: dependency.tries >= before + 4, 60)
        events = await history(pool, view.saga_id)
        now = await held(pool, id_, 2)
        dependency.open = True
        assert (await outcome(pool, id_, 60)).status == "completed"
    assert sum(getattr(r.event, "in_doubt", False) for r in events) == 1
    assert replay(r.event for r in with_hold(now, events)).holds >= 2


async def test_a_try_under_a_claim_that_was_held_counts_as_lost_when_its_worker_dies(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    dependency = Dependency()
    hanging, let_go = asyncio.Event(), asyncio.Event()
    genuine = dependency.do

    async def hang(ctx: Context) -> Outcome:
        if dependency.tries >= 3 and not hanging.is_set():
            hanging.set()
            await let_go.wait()
        return await genuine(ctx)

    dependency.do = hang  # type: ignore[method-assign]
    known = dependency.registry()
    async with running_worker(settings, known) as first:
        id_ = await publish(redis, create())
        await asyncio.wait_for(hanging.wait(), 60)
        await first.pool.execute("UPDATE evosaga.sagas SET owner = 'somebody who is dead'")
        dependency.open = True
        async with running_worker(settings, known):
            done = await outcome(pool, id_, 60)
        let_go.set()  # or its worker would wait for it when it leaves
    told: list[Any] = [r.event for r in await history(pool, done.saga_id)]
    assert done.status == "completed"
    assert [e.code for e in told if getattr(e, "lost", None)] == ["worker_lost"]
