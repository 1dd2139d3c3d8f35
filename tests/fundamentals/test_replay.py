"""Replay: a saga that nobody but a person can judge is parked, and goes on from where it stood.

The bank failed without an answer, and then refused. Was the first charge made? To undo the
reservation could be wrong, to go on could be wrong; so the saga is parked as ``failed``. Somebody
mends the cause and publishes ``saga.replay``. What was done already is not done again.
"""

import uuid

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import order
from tests.support.driving import outcome, publish, story, told
from tests.support.waiting import eventually


async def test_a_parked_booking_goes_on_when_a_person_says_so(hotel: Redis, pool: Pool) -> None:
    await hotel.set("charges", "not a hash, so every HSET is an error")
    booking = await order(hotel, room=107, guest="ada", euros=100)
    await eventually(lambda: told(pool, booking, "step.failed charge"))
    await hotel.set("balance:ada", 0)
    await hotel.delete("charges")
    parked = await outcome(pool, booking)
    assert (parked.status, parked.code) == ("failed", "card_declined")
    assert await hotel.get("room:107") == booking.encode(), "still ours: nothing was undone"

    await hotel.set("balance:ada", 100)
    replay = {"id": str(uuid.uuid4()), "type": "saga.replay", "data": {"saga_id": booking}}
    await publish(hotel, replay)
    await eventually(lambda: told(pool, booking, "saga.completed"))

    done = await story(pool, await outcome(pool, booking))
    assert done.count("step.succeeded reserve") == 1
    assert done[done.index("saga.failed charge") + 1] == "saga.resumed"
