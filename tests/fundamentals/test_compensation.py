"""Compensation: what was done before a step that is refused is undone, and nothing else.

The card is charged after the room is reserved. When the bank refuses, the reservation is taken
back; a room that was never ours is left alone.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import book
from tests.support.driving import story


async def test_a_declined_card_leaves_the_room_free(hotel: Redis, pool: Pool) -> None:
    saga = await book(hotel, pool, room=102, guest="bob")

    assert (saga.status, saga.code) == ("compensated", "card_declined")
    assert not await hotel.exists("room:102")
    assert not await hotel.exists("charges", "keys")
    assert await story(pool, saga) == [
        "saga.started",
        "step.started reserve",
        "step.succeeded reserve",
        "step.started charge",
        "step.failed charge",
        "compensation.began charge",
        "compensation.started reserve",
        "compensation.succeeded reserve",
        "saga.compensated",
    ]


async def test_a_room_that_is_taken_stays_the_other_guests(hotel: Redis, pool: Pool) -> None:
    await hotel.set("room:103", "somebody else")
    saga = await book(hotel, pool, room=103, guest="ada")

    assert (saga.status, saga.code) == ("compensated", "room_taken")
    assert await hotel.get("room:103") == b"somebody else"
