"""Cancel: a saga that is not past its pivot is stopped, and what it did is undone.

``saga.cancel`` is a command like any other. After the pivot there is no way back, only forward, and
the answer is that it is too late.
"""

import uuid

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import order
from tests.support.driving import outcome, publish, story, told
from tests.support.waiting import eventually


async def test_a_booking_that_is_cancelled_in_time_gives_the_room_back(
    hotel: Redis, pool: Pool
) -> None:
    await hotel.rpush("room:108", "a list, so that to read it is an error")
    booking = await order(hotel, room=108, guest="ada")
    await eventually(lambda: told(pool, booking, "step.failed reserve"))

    cancel = {"id": str(uuid.uuid4()), "type": "saga.cancel", "data": {"saga_id": booking}}
    await publish(hotel, cancel)
    await eventually(lambda: told(pool, booking, "saga.cancel_requested"))
    await hotel.delete("room:108")
    saga = await outcome(pool, booking)

    assert (saga.status, saga.code) == ("compensated", "cancelled")
    assert not await hotel.exists("room:108", "charges", "keys")
    assert "step.started charge" not in await story(pool, saga)
