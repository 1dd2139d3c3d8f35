"""The table of arbitration against the real thing: commands on the stream, and what is left.

Each line of ``tests/core/rivals.py`` is set up with a worker and the simulated Evolution server,
then everything comes that the table has a column for, then what held the scene up is let go.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from events.database import Pool
from orchestrator.app import running_worker
from orchestrator.config import Settings
from orchestrator.local.evolution import SimulatedEvolution
from orchestrator.queries import SagaView, find_saga
from sagas.arbitration import business_key
from sagas.catalogue import Catalogue, catalogue_of
from sagas.definition import Admission, Saga, retryable
from sagas.outcome import Done, Held, Outcome, Rejected
from sagas.world import World
from tests.core.rivals import lines
from tests.driving import (
    contradictions,
    count,
    create,
    delete,
    impatient,
    outcome,
    publish,
    story,
)
from tests.waiting import eventually

BAILEYS = "WHATSAPP-BAILEYS"


@dataclass
class Mending:
    """How the saga of another kind goes: it is held until it may go on, or it is parked."""

    says: Literal["held", "rejected", "done"] = "held"

    async def mend(self, _: Any) -> Outcome:
        if self.says == "held":
            return Held("mending", "still at it", 0.05)
        return Done() if self.says == "done" else Rejected("broken", "that can't be mended")


class Mend(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    organization_id: uuid.UUID
    instance_name: str


@dataclass
class Scene:
    """One organization, its instance, and everything that can be done to them."""

    pool: Pool
    redis: Redis
    evolution: SimulatedEvolution
    mending: Mending
    organization: str
    name: str
    cause: str | None = None
    """The saga that is there."""

    async def create(self, **fields: Any) -> SagaView:
        return await self.ended(self.creation(**fields))

    def creation(self, **fields: Any) -> dict[str, Any]:
        wanted = {"organization_id": self.organization, "instance_name": self.name}
        return create(**wanted | fields)

    async def ended(self, command: dict[str, Any]) -> SagaView:
        return await outcome(self.pool, await publish(self.redis, command))

    async def begun(self, command: dict[str, Any], until: Callable[[SagaView], object]) -> None:
        """Publish it, and wait until it has come so far."""
        self.cause = await publish(self.redis, command)

        async def so_far() -> bool:
            view = await find_saga(self.pool, command["id"])
            return view is not None and bool(until(view))

        await eventually(so_far, 20, message=f"{command['type']} to come so far")

    def let_go(self) -> None:
        """What held things up is over."""
        self.evolution.disarm()
        self.mending.says = "done"

    async def nothing_left(self) -> None:
        assert self.name not in self.evolution.live()
        assert self.name not in self.evolution.rows()
        rows = "SELECT count(*) FROM healthcare.integrations WHERE organization_id = $1"
        assert await self.pool.fetchval(rows, uuid.UUID(self.organization)) == 0
        assert await self.redis.exists(f"whatsapp:instance:{self.name}") == 0


def catalogue(mending: Mending) -> Catalogue:
    async def admit(_c: Any, _w: World, commands: Sequence[Any]) -> list[Admission]:
        return [
            Admission(business_key(d.organization_id), d.organization_id, d.instance_name)
            for _, d in commands
        ]

    mend = Saga(
        "mend-integration",
        1,
        "integration.mend",
        Mend,
        admit,
        (retryable("mend", do=mending.mend),),
    )
    return catalogue_of([*impatient(1).versions.values(), mend])


@pytest.fixture
async def scene(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> AsyncIterator[Scene]:
    mending = Mending()
    known = catalogue(mending)
    async with running_worker(settings, known):
        name = f"the-{uuid.uuid4().hex[:8]}"
        yield Scene(pool, redis, evolution, mending, str(uuid.uuid4()), name)
    assert await contradictions(pool, known) == []


# --- setting the scenes -----------------------------------------------------------------------


async def nothing(scene: Scene) -> None:
    pass


async def an_integration(scene: Scene) -> None:
    assert (await scene.create()).status == "completed"


async def a_create_on_its_way(scene: Scene) -> None:
    scene.evolution.arm("429", operation="create", times=None, retry_after=0.2)
    await scene.begun(scene.creation(), lambda saga: saga.code == "evolution_busy")


async def a_create_past_its_point_of_no_return(scene: Scene) -> None:
    scene.evolution.arm("slow", operation="connect", seconds=1.5)
    await scene.begun(scene.creation(channel=BAILEYS), lambda saga: saga.step == "pair")


async def a_create_being_undone(scene: Scene) -> None:
    scene.evolution.arm("429", operation="delete", times=None, retry_after=0.2)
    command = scene.creation()
    await scene.redis.set(f"evosaga:removed:{scene.name}", command["id"])
    await scene.begun(command, lambda saga: saga.code == "evolution_busy")


async def a_parked_create(scene: Scene) -> None:
    scene.evolution.arm("5xx_before", operation="delete", times=None)
    command = scene.creation()
    await scene.redis.set(f"evosaga:removed:{scene.name}", command["id"])
    await scene.begun(command, lambda saga: saga.status == "failed")


async def a_delete_on_its_way(scene: Scene) -> None:
    await an_integration(scene)
    scene.evolution.arm("429", operation="delete", times=None, retry_after=0.2)
    await scene.begun(delete(scene.name), lambda saga: saga.code == "evolution_busy")


async def a_parked_delete(scene: Scene) -> None:
    await an_integration(scene)
    scene.evolution.arm("5xx_before", operation="delete", times=None)
    await scene.begun(delete(scene.name), lambda saga: saga.status == "failed")


def mend(scene: Scene) -> dict[str, Any]:
    data = {"organization_id": scene.organization, "instance_name": scene.name}
    return {"id": str(uuid.uuid4()), "type": "integration.mend", "data": data}


async def another_saga_on_its_way(scene: Scene) -> None:
    await an_integration(scene)
    await scene.begun(mend(scene), lambda saga: saga.code == "mending")


async def another_saga_parked(scene: Scene) -> None:
    await an_integration(scene)
    scene.mending.says = "rejected"
    await scene.begun(mend(scene), lambda saga: saga.status == "failed")


async def a_full_queue(scene: Scene) -> None:
    await a_delete_on_its_way(scene)
    for _ in range(10):
        await publish(scene.redis, delete(scene.name))
    waiting = "SELECT count(*) = 10 FROM evosaga.sagas WHERE behind IS NOT NULL"
    await eventually(lambda: scene.pool.fetchval(waiting))


SCENES: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "nothing": nothing,
    "an integration": an_integration,
    "a create on its way": a_create_on_its_way,
    "a create past its point of no return": a_create_past_its_point_of_no_return,
    "a create being undone": a_create_being_undone,
    "a parked create": a_parked_create,
    "a delete on its way": a_delete_on_its_way,
    "a parked delete": a_parked_delete,
    "another saga on its way": another_saga_on_its_way,
    "another saga, parked": another_saga_parked,
    "a full queue": a_full_queue,
}


def comer(scene: Scene, kind: str) -> dict[str, Any]:
    return {
        "create": scene.creation(instance_name=None),
        "namesake": scene.creation(organization_id=str(uuid.uuid4())),
        "delete": delete(scene.name),
    }[kind]


@pytest.mark.parametrize("there", lines())
async def test_the_table_for_creates(scene: Scene, there: str) -> None:
    await SCENES[there](scene)
    for kind in ("namesake", "create"):
        expected, command = lines()[there][kind], comer(scene, kind)
        saga = await scene.ended(command)
        if expected == "begins":
            assert saga.status == "completed"
        else:
            assert (saga.status, saga.code) == ("rejected", expected)
            assert await story(scene.pool, saga) == ["saga.rejected"]
            assert kind == "namesake" or saga.existing_instance == scene.name
    scene.let_go()
    if scene.cause and "parked" not in there:
        assert (await outcome(scene.pool, scene.cause, 30)).status != "failed"


@pytest.mark.parametrize("there", lines())
async def test_the_table_for_deletes(scene: Scene, there: str) -> None:
    await SCENES[there](scene)
    expected, command = lines()[there]["delete"], comer(scene, "delete")
    await publish(scene.redis, command)

    async def settled() -> bool:
        saga = await find_saga(scene.pool, command["id"])
        return saga is not None and (saga.over or saga.code == "waiting")

    await eventually(settled, 20, message="the delete to be settled")
    saga = await find_saga(scene.pool, command["id"])
    assert saga is not None
    if "waits" in expected:
        assert saga.behind is not None
        assert saga.status == "running"
    elif expected != "begins":
        assert (saga.status, saga.code) == ("rejected", expected)
        assert await story(scene.pool, saga) == ["saga.rejected"]
    scene.let_go()
    if "parked" in there:
        return
    if expected == "begins" or "waits" in expected:
        assert (await outcome(scene.pool, command["id"], 30)).status == "completed"
    await eventually(lambda: no_saga_is_active(scene.pool), 30)
    await scene.nothing_left()


async def no_saga_is_active(pool: Pool) -> bool:
    active = "SELECT count(*) FROM evosaga.sagas WHERE status IN ('running', 'compensating')"
    return await count(pool, active) == 0
