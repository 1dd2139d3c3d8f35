"""The table of arbitration against the real thing: commands on the stream, and what is left.

Each line of ``tests/whatsapp/rivals.py`` is set up with a worker and the simulated Evolution
server, then everything comes that the table has a column for, then what held the scene up is let
go. All lines at once, each with an organization of its own.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import SagaView, find_saga
from evosaga.sagas.definition import Admission, Saga, retryable
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected
from evosaga.sagas.registry import SagaRegistry, registry_of
from evosaga.sagas.whatsapp.arbitration import business_key
from evosaga.sagas.whatsapp.services import Services
from tests.support.driving import (
    contradictions,
    count,
    create,
    delete,
    impatient,
    outcome,
    publish,
    story,
)
from tests.support.waiting import eventually
from tests.whatsapp.rivals import lines

BAILEYS = "WHATSAPP-BAILEYS"
SHORT = "a create past its point of no return"
"""All others stay as they are until they are let go."""


@dataclass
class Mending:
    """How the saga of another kind goes: it is held until it may go on, or it is parked."""

    over: bool = False
    broken: set[str] = field(default_factory=set)
    """The organizations for which it can't be done."""

    async def mend(self, ctx: Any) -> Outcome:
        if str(ctx.input.organization_id) in self.broken and not self.over:
            return Rejected("broken", "that can't be mended")
        return Done() if self.over else Held("mending", "still at it", 0.05)


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

    def arm(self, mode: str, operation: str, **parameters: Any) -> None:
        """A fault that strikes this scene alone."""
        where = {"operation": operation, "name": self.name}
        self.evolution.arm(mode, times=None, **where, **parameters)

    async def nothing_left(self) -> None:
        assert self.name not in self.evolution.live()
        assert self.name not in self.evolution.rows()
        rows = "SELECT count(*) FROM healthcare.integrations WHERE organization_id = $1"
        assert await self.pool.fetchval(rows, uuid.UUID(self.organization)) == 0
        assert await self.redis.exists(f"whatsapp:instance:{self.name}") == 0


def registry(mending: Mending) -> SagaRegistry:
    async def admit(_c: Any, _w: Services, commands: Sequence[Any]) -> list[Admission]:
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
    return registry_of([*impatient(1).versions.values(), mend])


@dataclass
class Scenes:
    """A worker, and as many scenes as are wanted."""

    pool: Pool
    redis: Redis
    evolution: SimulatedEvolution
    mending: Mending = field(default_factory=Mending)

    async def each(self) -> dict[str, Scene]:
        """Every line of the table, set up side by side; what does not last comes first."""
        scenes = {there: self.one() for there in lines()}
        async with asyncio.TaskGroup() as group:
            for there in scenes.keys() - {SHORT}:
                group.create_task(SCENES[there](scenes[there]), name=there)
        await SCENES[SHORT](scenes[SHORT])
        return {SHORT: scenes[SHORT]} | scenes

    def one(self) -> Scene:
        given = (self.pool, self.redis, self.evolution, self.mending)
        return Scene(*given, str(uuid.uuid4()), f"the-{uuid.uuid4().hex[:8]}")

    def let_go(self) -> None:
        """What held things up is over."""
        self.evolution.disarm()
        self.mending.over = True


@pytest.fixture
async def scenes(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> AsyncIterator[Scenes]:
    scenes = Scenes(pool, redis, evolution)
    known = registry(scenes.mending)
    async with running_worker(settings, known):
        yield scenes
    assert await contradictions(pool, known) == []


# --- setting the scenes -----------------------------------------------------------------------


async def nothing(scene: Scene) -> None:
    pass


async def an_integration(scene: Scene) -> None:
    assert (await scene.create()).status == "completed"


async def a_create_on_its_way(scene: Scene) -> None:
    scene.arm("429", "create", retry_after=0.2)
    await scene.begun(scene.creation(), lambda saga: saga.code == "evolution_busy")


async def a_create_past_its_point_of_no_return(scene: Scene) -> None:
    scene.evolution.arm("slow", operation="connect", name=scene.name, seconds=2.5)
    await scene.begun(scene.creation(channel=BAILEYS), lambda saga: saga.step == "pair")


async def a_create_being_undone(scene: Scene) -> None:
    scene.arm("429", "delete", retry_after=0.2)
    command = scene.creation()
    await scene.redis.set(f"evosaga:removed:{scene.name}", command["id"])
    await scene.begun(command, lambda saga: saga.code == "evolution_busy")


async def a_parked_create(scene: Scene) -> None:
    scene.arm("5xx_before", "delete")
    command = scene.creation()
    await scene.redis.set(f"evosaga:removed:{scene.name}", command["id"])
    await scene.begun(command, lambda saga: saga.status == "failed")


async def a_delete_on_its_way(scene: Scene) -> None:
    await an_integration(scene)
    scene.arm("429", "delete", retry_after=0.2)
    await scene.begun(delete(scene.name), lambda saga: saga.code == "evolution_busy")


async def a_parked_delete(scene: Scene) -> None:
    await an_integration(scene)
    scene.arm("5xx_before", "delete")
    await scene.begun(delete(scene.name), lambda saga: saga.status == "failed")


def mend(scene: Scene) -> dict[str, Any]:
    data = {"organization_id": scene.organization, "instance_name": scene.name}
    return {"id": str(uuid.uuid4()), "type": "integration.mend", "data": data}


async def another_saga_on_its_way(scene: Scene) -> None:
    await an_integration(scene)
    await scene.begun(mend(scene), lambda saga: saga.code == "mending")


async def another_saga_parked(scene: Scene) -> None:
    await an_integration(scene)
    scene.mending.broken.add(scene.organization)
    await scene.begun(mend(scene), lambda saga: saga.status == "failed")


async def a_full_queue(scene: Scene) -> None:
    await a_delete_on_its_way(scene)
    for _ in range(10):
        await publish(scene.redis, delete(scene.name))
    waiting = (
        "SELECT count(*) = 10 FROM evosaga.sagas WHERE behind IS NOT NULL AND instance_name = $1"
    )
    await eventually(lambda: scene.pool.fetchval(waiting, scene.name))


SCENES: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
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


async def test_the_table_for_creates(scenes: Scenes) -> None:
    each = await scenes.each()
    for there, scene in each.items():
        for kind in ("namesake", "create"):
            expected, command = lines()[there][kind], comer(scene, kind)
            saga = await scene.ended(command)
            if expected == "begins":
                assert saga.status == "completed", (there, kind)
            else:
                assert (saga.status, saga.code) == ("rejected", expected), (there, kind)
                assert await story(scene.pool, saga) == ["saga.rejected"], (there, kind)
                assert kind == "namesake" or saga.existing_instance == scene.name, there
    scenes.let_go()
    for there, scene in each.items():
        if scene.cause and "parked" not in there:
            assert (await outcome(scene.pool, scene.cause, 30)).status != "failed", there


async def test_the_table_for_deletes(scenes: Scenes) -> None:
    each = await scenes.each()
    commands = {there: comer(scene, "delete") for there, scene in each.items()}
    for there, command in commands.items():
        await publish(scenes.redis, command)
        await settled(scenes.pool, there, command["id"])
    scenes.let_go()
    for there, command in commands.items():
        expected = lines()[there]["delete"]
        if "parked" not in there and (expected == "begins" or "waits" in expected):
            assert (await outcome(scenes.pool, command["id"], 30)).status == "completed", there
    await eventually(lambda: only_those_in_line_are_left(scenes.pool), 30)
    for there, scene in each.items():
        if "parked" not in there:
            await scene.nothing_left()


async def settled(pool: Pool, there: str, command_id: str) -> None:
    """The delete has come to what the table says."""
    found: list[SagaView] = []

    async def known() -> bool:
        saga = await find_saga(pool, command_id)
        found[:] = [saga] if saga else []
        return saga is not None and (saga.over or saga.code == "waiting")

    await eventually(known, 20, message=f"the delete to be settled: {there}")
    [saga], expected = found, lines()[there]["delete"]
    if "waits" in expected:
        assert saga.behind is not None, there
        assert saga.status == "running", there
    elif expected != "begins":
        assert (saga.status, saga.code) == ("rejected", expected), there
        assert await story(pool, saga) == ["saga.rejected"], there


async def only_those_in_line_are_left(pool: Pool) -> bool:
    """Of the full queue, which takes its time; that it is worked off is shown with the rivals."""
    active = (
        "SELECT count(*) FROM evosaga.sagas "
        "WHERE status IN ('running', 'compensating') AND code IS DISTINCT FROM 'waiting'"
    )
    return await count(pool, active) == 0
