"""Admission: a command that can't succeed is refused before its saga begins.

``admit`` of the saga says so, in the transaction that would have begun it. The refusal is an event
like any other, to be looked up under the command's id.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import book
from tests.support.driving import story


async def test_a_booking_that_makes_no_sense_is_rejected_untouched(
    hotel: Redis, pool: Pool
) -> None:
    saga = await book(hotel, pool, room=113, guest="ada")

    assert (saga.status, saga.code) == ("rejected", "no_such_room")
    assert await story(pool, saga) == ["saga.rejected"]
