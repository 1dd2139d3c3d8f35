"""Unknown is not failed: a call without an answer may have worked, so the next try looks first.

Here the bank's book breaks after it has taken the money. To the step that is an exception: it
can't tell whether the guest was charged. The engine counts an attempt and asks the step again, now
with ``ctx.in_doubt`` set; the step finds its own charge and makes no second one.
"""

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import order
from tests.support.driving import outcome, told
from tests.support.waiting import eventually


async def test_a_charge_without_an_answer_is_looked_for_before_it_is_made_again(
    hotel: Redis, pool: Pool
) -> None:
    await hotel.set("charges", "not a hash, so every HSET is an error")
    booking = await order(hotel, room=105, guest="ada")
    await eventually(lambda: told(pool, booking, "step.failed charge"))
    async with hotel.pipeline(transaction=True) as bank:  # the answer was lost, not the money
        bank.delete("charges")
        bank.hset("charges", booking, "80")
        await bank.execute()

    saga = await outcome(pool, booking)

    assert saga.status == "completed"
    assert await hotel.hgetall("charges") == {booking.encode(): b"80"}
    found = await pool.fetchval(
        "SELECT data -> 'result' ->> 'found' FROM evosaga.saga_events "
        "WHERE saga_id = $1 AND type = 'step.succeeded' AND data ->> 'step' = 'charge'",
        saga.saga_id,
    )
    assert found == "true", "the second try did not charge"
