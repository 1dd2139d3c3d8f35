"""Idempotency: a command is carried out once, however often it arrives.

Whoever publishes may repeat a command whose fate he does not know, under the same id.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.support.driving import nothing_pending, outcome, publish, story
from tests.support.waiting import eventually


async def test_the_same_command_sent_twice_books_once(hotel: Redis, pool: Pool) -> None:
    data = {"room": 104, "guest": "ada", "euros": 80}
    command = {"id": "booking-17", "type": "room.book", "data": data}
    await publish(hotel, command)
    await publish(hotel, command)
    await eventually(lambda: nothing_pending(hotel))

    saga = await outcome(pool, "booking-17")
    assert saga.status == "completed"
    assert await hotel.hlen("charges") == 1
    assert (await story(pool, saga)).count("step.succeeded charge") == 1
