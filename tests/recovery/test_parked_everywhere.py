"""L9: wherever a saga is parked, a person has a way out, is told it, and it ends well."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.sagas.definition import Effect, InCommit, Step
from evosaga.sagas.outcome import Outcome, Rejected, Unknown
from evosaga.sagas.registry import SagaRegistry, registry_of
from evosaga.sagas.whatsapp.services import Context
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    delete,
    impatient,
    nothing_pending,
    outcome,
    publish,
)
from tests.support.waiting import eventually

NO: Final = Rejected("refused", "refused by the test")
WHO_KNOWS: Final = Unknown("unclear", "unclear in the test")
FORWARD: Final = {
    "create-integration": ["notify", "pair"],
    "delete-integration": ["evolution", "postgres", "cache", "notify"],
}
BACK: Final[dict[str, tuple[list[str], dict[str, Outcome]]]] = {
    # what is stuck on its way back, and why it turned
    "create-integration": (["cache", "postgres", "evolution"], {"cache do": WHO_KNOWS}),
    "delete-integration": (["mark"], {"evolution do": NO}),
}


@dataclass
class Trouble:
    """What the steps of some sagas say instead of doing anything, as long as it lasts."""

    says: dict[uuid.UUID, dict[str, Outcome]] = field(default_factory=dict)

    def registry(self) -> SagaRegistry:
        return registry_of(
            replace(saga, steps=tuple(self.step(step) for step in saga.steps))
            for saga in impatient(2).versions.values()
        )

    def step(self, step: Step) -> Step:
        undo = step.undo and self.effect(step.undo, f"{step.name} undo")
        return replace(step, do=self.effect(step.do, f"{step.name} do"), undo=undo)

    def effect(self, genuine: Effect | InCommit, place: str) -> Effect | InCommit:
        if isinstance(genuine, InCommit):
            joined = genuine

            async def batch(connection: Any, contexts: Sequence[Context]) -> list[Outcome]:
                said = {c.saga_id: self.said(c, place) for c in contexts}
                well = [c for c in contexts if said[c.saga_id] is None]
                done = iter(await joined.run(connection, well) if well else [])
                return [said[c.saga_id] or next(done) for c in contexts]

            return InCommit(batch)
        alone = genuine

        async def one(ctx: Context) -> Outcome:
            return self.said(ctx, place) or await alone(ctx)

        return one

    def said(self, ctx: Context, place: str) -> Outcome | None:
        return self.says.get(ctx.saga_id, {}).get(place)


@pytest.mark.fault("l9", "b12", "d10")
async def test_whatever_step_a_saga_is_parked_at_a_replay_ends_it(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    trouble = Trouble()
    stuck: dict[str, tuple[str, str]] = {}

    async def begin(saga: str, step: str, way: str, says: dict[str, Outcome]) -> None:
        if saga == "create-integration":
            command = create(channel="WHATSAPP-BAILEYS" if step == "pair" else "EVOLUTION")
        else:
            made = await outcome(pool, await publish(redis, create()))
            command = delete(str(made.instance_name))
        trouble.says[uuid.UUID(command["id"])] = says
        stuck[await publish(redis, command)] = (step, way)

    async with running_worker(settings, trouble.registry()):
        for saga, steps in FORWARD.items():
            for step in steps:
                await begin(saga, step, "forward", {f"{step} do": WHO_KNOWS})
        for saga, (steps, turned) in BACK.items():
            for step in steps:
                await begin(saga, step, "compensation", {f"{step} undo": WHO_KNOWS, **turned})
        for id_, (step, way) in stuck.items():
            parked = await outcome(pool, id_)
            assert (parked.status, parked.step, parked.direction) == ("failed", step, way)
            await is_told_the_way_out(pool, redis, parked)
        await eventually(lambda: nothing_pending(redis))
        refused = [(d["code"], d["message"]) for d in await dead_letters(redis)]
        assert [code for code, _ in refused] == ["not_cancellable"] * 6
        assert all("replay it when its cause is mended" in said for _, said in refused)
        trouble.says.clear()
        for id_ in stuck:
            wish = {"id": f"again-{id_}", "type": "saga.replay", "data": {"saga_id": id_}}
            await publish(redis, wish)
        ends = {id_: await ended(pool, id_) for id_ in stuck}
    for id_, (step, way) in stuck.items():
        expected = "completed" if way == "forward" else "compensated"
        assert ends[id_].status == expected, (step, way, ends[id_])
    left = {
        str(view.instance_name)
        for view in ends.values()
        if (view.saga, view.status)
        in (("create-integration", "completed"), ("delete-integration", "compensated"))
    }
    assert set(evolution.rows()) == set(evolution.live()) == left
    rows = await pool.fetch(
        "SELECT config ->> 'instance_name' AS name FROM healthcare.integrations"
    )
    assert {row["name"] for row in rows} == left
    assert await contradictions(pool) == []


async def is_told_the_way_out(pool: Pool, redis: Redis, parked: SagaView) -> None:
    """By ``why``, by a command that finds it in its way, and by a cancel that can't be."""
    told = await why_of(pool, impatient(2), parked)
    assert told.headline.startswith(f"Parked: step {parked.step}")
    assert told.cure is not None
    assert f"evosaga replay {parked.saga_id}" in told.cure
    back = parked.direction == "compensation"
    assert (f"evosaga cancel {parked.saga_id}" in told.cure) is back
    another = create(organization_id=str(parked.organization_id))
    refused = await outcome(pool, await publish(redis, another))
    assert refused.status == "rejected"
    assert "replay it first" in str(refused.message)
    if not back:
        data = {"saga_id": str(parked.saga_id)}
        await publish(redis, {"id": f"no-{parked.saga_id}", "type": "saga.cancel", "data": data})


async def ended(pool: Pool, reference: str) -> SagaView:
    """The saga once it is parked no more."""
    found: list[SagaView] = []

    async def over() -> bool:
        view = await find_saga(pool, reference)
        found[:] = [view] if view and view.over and view.status != "failed" else []
        return bool(found)

    await eventually(over, message=f"saga {reference} to end after its replay")
    return found[0]
