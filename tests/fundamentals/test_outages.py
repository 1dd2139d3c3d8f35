"""Holding: while a dependency is down the saga waits, and no attempt is used up.

``Held`` says "not now". However long the outage, the step is still at its first attempt when the
hotel's book is back, and the history is no longer for it.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import order
from tests.support.driving import outcome, story, told
from tests.support.waiting import eventually


async def test_a_booking_waits_until_the_hotels_book_is_back(hotel: Redis, pool: Pool) -> None:
    await hotel.rpush("room:106", "a list, so that to read it is an error")
    booking = await order(hotel, room=106, guest="ada")
    await eventually(lambda: told(pool, booking, "step.failed reserve"))
    held = await pool.fetchrow(
        "SELECT status, code, attempt FROM evosaga.sagas WHERE saga_id = $1::text::uuid", booking
    )
    assert held is not None
    assert tuple(held) == ("running", "hotel_down", 1)

    await hotel.delete("room:106")
    saga = await outcome(pool, booking)

    assert saga.status == "completed"
    assert (await story(pool, saga)).count("step.failed reserve") == 1, "one event for the outage"
