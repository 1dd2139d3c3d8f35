"""Several domains in one worker: side by side, and none in the way of another."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from evosaga import Command, Done, Outcome, Saga, StepContext, compensatable, domain, retryable
from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domain, Domains
from evosaga.orchestrator.maintenance.deploy_check import check_deploy
from evosaga.orchestrator.queries.sagas import find_saga
from evosaga.orchestrator.queries.why import why_of
from evosaga.orchestrator.worker import running_worker
from evosaga.sagas.definition import DefinitionError
from tests.support.driving import outcome, publish
from tests.support.waiting import eventually


class Slip(BaseModel):
    number: int


class Park(Command[Slip]):
    command = "car.park"
    plate: str


class Greet(Command):
    command = "guest.greet"
    name: str


class Garage:
    """It is closed until somebody opens it."""

    def __init__(self) -> None:
        self.open = False
        self.parked: list[str] = []
        self.number: Any = 7


async def park(ctx: StepContext[Park, Garage]) -> Outcome:
    ctx.services.parked.append(ctx.input.plate)
    return Done({"number": ctx.services.number})


async def unpark(ctx: StepContext[Park, Garage]) -> Outcome:
    ctx.services.parked.remove(ctx.input.plate)
    return Done()


async def greet(_ctx: StepContext[Greet, None]) -> Outcome:
    return Done()


PARK = Saga(
    name="park-a-car",
    version=1,
    command=Park.command,
    input=Park,
    result=Slip,
    business_key=lambda order: order.plate,
    steps=(compensatable("park", do=park, undo=unpark),),
)
GREET = Saga(
    name="greet-a-guest",
    version=1,
    command=Greet.command,
    input=Greet,
    steps=(retryable("greet", do=greet),),
)
LOBBY = domain("lobby", GREET)


def cellar(garage: Garage) -> Any:
    """The garage's domain, which opens as soon as the garage does."""

    @asynccontextmanager
    async def open_garage() -> AsyncIterator[Garage]:
        if not garage.open:
            raise ConnectionRefusedError("password=secret")
        yield garage

    return domain("cellar", PARK, services=open_garage)


def command(type_: str, **data: Any) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "type": type_, "data": data}


async def test_a_resource_that_cannot_be_opened_holds_its_own_sagas_and_nobody_elses(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    garage = Garage()
    async with running_worker(settings, cellar(garage), LOBBY) as worker:
        waiting = await publish(redis, command("car.park", plate="B-EV 1"))
        assert (await outcome(pool, await publish(redis, command("guest.greet", name="ada")))).over

        async def held() -> bool:
            view = await find_saga(pool, waiting)
            return view is not None and view.code == "resource_unavailable"

        await eventually(held, 15)
        view = await find_saga(pool, waiting)
        assert view is not None
        assert "secret" not in str(view.message)
        told = await why_of(pool, worker.engine.registry, view)
        assert "what cellar needs could not be opened" in told.headline

        garage.open = True
        assert (await outcome(pool, waiting, 40)).status == "completed"
        assert garage.parked == ["B-EV 1"]


async def test_a_result_that_does_not_fit_its_type_parks_the_saga_and_names_the_field(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    garage = Garage()
    garage.open, garage.number = True, "seven, which is a secret"
    async with running_worker(settings, cellar(garage)):
        saga = await outcome(pool, await publish(redis, command("car.park", plate="B-EV 2")))
        assert (saga.status, saga.code) == ("failed", "bad_result")
        assert str(saga.message).startswith("the result does not fit Slip: number: ")
        assert "seven" not in str(saga.message)

        garage.number = 7  # the step is not done again: what it said stays so
        wish = command("saga.cancel", saga_id=str(saga.saga_id))
        await publish(redis, wish)
        await eventually(lambda: not garage.parked, 15)


async def test_the_sagas_of_a_package_that_is_gone_wait_until_it_is_back(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    garage = Garage()
    async with running_worker(settings, cellar(garage), LOBBY):
        waiting = await publish(redis, command("car.park", plate="B-EV 3"))
        await eventually(lambda: find_saga(pool, waiting), 15)

    garage.open = True
    async with running_worker(settings, LOBBY) as worker:
        assert (await outcome(pool, await publish(redis, command("guest.greet", name="bob")))).over
        view = await find_saga(pool, waiting)
        assert view is not None
        assert view.status == "running"
        (verdict,) = await check_deploy(pool, worker.engine.registry)
        assert (verdict.saga, verdict.fits) == ("park-a-car", False)
        told = str(await why_of(pool, worker.engine.registry, view))
        assert "park-a-car" in told

    async with running_worker(settings, cellar(garage), LOBBY):
        assert (await outcome(pool, waiting, 40)).status == "completed"


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        (
            replace(PARK, version=2, command="car.store"),
            "define the saga 'park-a-car'",
        ),
        (replace(PARK, name="store"), "take the command 'car.park'"),
    ],
)
async def test_two_packages_with_one_name_are_refused(
    settings: Settings, twice: Any, said: str
) -> None:
    first = replace(cellar(Garage()), package="cellar 1")
    other = replace(domain("lobby", twice), package="lobby 2")
    with pytest.raises(
        DefinitionError, match=rf"cellar 1 and lobby 2 both {said} \(.+\): rename it"
    ):
        async with running_worker(settings, first, other):
            pass


def test_two_domains_can_not_share_one_table_of_versions() -> None:
    one: Domain[object] = domain("hotel", migrations=Path("one"))
    other: Domain[object] = domain("hotel", migrations=Path("other"))
    with pytest.raises(DefinitionError, match="'hotel': rename one"):
        Domains.of(one, other)
    assert Domains.of(one, domain("motel")).each[0] is one


def test_two_packages_with_one_name_are_refused_with_both_where_they_are_and_the_cure() -> None:
    mine, yours = replace(LOBBY, package="mine 1.0"), replace(LOBBY, package="yours 2.0")

    def refused(*each: Domain[Any]) -> str:
        with pytest.raises(DefinitionError) as error:
            Domains.of(*each)
        return str(error.value)

    here = f"{Path(__file__)}:"
    said = refused(mine, replace(yours, name="hall"))
    assert said.startswith("mine 1.0 and yours 2.0 both define the saga 'greet-a-guest'")
    assert said.count(here) == 2
    assert said.endswith("rename it in one of them, or install only one")
    garage = Garage()
    said = refused(mine, replace(cellar(garage), name="lobby", package="yours 2.0"))
    assert said.startswith("mine 1.0 and yours 2.0 both have a domain named 'lobby'")
    assert said.count(here) == 2
    other = replace(GREET, name="hail-a-guest")
    said = refused(mine, replace(domain("hall", other), package="yours 2.0"))
    assert said.startswith("mine 1.0 and yours 2.0 both take the command 'guest.greet'")
