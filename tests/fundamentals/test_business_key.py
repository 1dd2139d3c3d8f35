"""Business key: what two sagas must not work on at once has one key, and one open saga holds it.

The hotel's key is the room. While one booking of it is under way, a second one is refused, before
anything is done. A booking that is over holds nothing.
"""

import uuid

from pydantic import BaseModel
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domain
from evosaga.orchestrator.worker import running_worker
from evosaga.sagas.context import StepContext
from evosaga.sagas.definition import Saga, retryable
from evosaga.sagas.outcome import Done, Held, Outcome
from evosaga.sagas.registry import registry_of
from tests.fundamentals.test_your_first_saga import book, open_hotel, order
from tests.support.driving import outcome, publish, told
from tests.support.waiting import eventually


async def test_a_room_is_booked_by_one_saga_at_a_time(hotel: Redis, pool: Pool) -> None:
    await hotel.rpush("room:109", "a list, so that to read it is an error")
    first = await order(hotel, room=109, guest="ada")
    await eventually(lambda: told(pool, first, "step.failed reserve"))

    second = await book(hotel, pool, room=109, guest="ada")
    other_room = await book(hotel, pool, room=110, guest="ada")

    assert (second.status, second.code) == ("rejected", "in_progress")
    assert other_room.status == "completed"
    await hotel.delete("room:109")
    assert (await outcome(pool, first)).status == "completed"


class Rent(BaseModel):
    """The ``data`` of ``bike.rent``: two tenants may call a bike of theirs by one number."""

    tenant: uuid.UUID
    bike: int


async def hand_out(ctx: StepContext[Rent, Redis]) -> Outcome:
    shop_is_open = await ctx.services.exists("the shop is open")
    return Done() if shop_is_open else Held("closed", "the shop is closed")


RENT_A_BIKE = Saga(
    name="rent-a-bike",
    version=1,
    command="bike.rent",
    input=Rent,
    business_key=lambda rent: str(rent.bike),
    organization=lambda rent: rent.tenant,
    steps=(retryable("hand-out", do=hand_out),),
)
SHOP = Domain(sagas=registry_of([RENT_A_BIKE]), open_services=open_hotel)


async def test_who_holds_a_key_is_told_to_its_own_organization_alone(
    settings: Settings, redis: Redis, pool: Pool
) -> None:
    ours, theirs = str(uuid.uuid4()), str(uuid.uuid4())

    async def rent(tenant: str) -> str:
        data = {"tenant": tenant, "bike": 7}
        return await publish(redis, {"id": str(uuid.uuid4()), "type": "bike.rent", "data": data})

    async with running_worker(settings, SHOP):
        first = await rent(ours)
        await eventually(lambda: told(pool, first, "step.failed hand-out"))
        again = await outcome(pool, await rent(ours))
        strange = await outcome(pool, await rent(theirs))
        await redis.set("the shop is open", 1)
        assert (await outcome(pool, first)).status == "completed"

    assert (again.code, strange.code) == ("in_progress", "in_progress")
    assert first in (again.message or "") or "rent-a-bike" in (again.message or "")
    assert "rent-a-bike" not in (strange.message or "")
    assert first not in (strange.message or "")
