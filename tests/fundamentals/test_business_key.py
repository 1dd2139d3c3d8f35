"""Business key: what two sagas must not work on at once has one key, and one open saga holds it.

The hotel's key is the room. While one booking of it is under way, a second one is refused, before
anything is done. A booking that is over holds nothing.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import book, order
from tests.support.driving import outcome, told
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
