"""Events: whoever wants to know follows one Redis stream, and needs nothing else of ours.

Each event of a saga is an entry of ``evosaga:events`` in the shape of a CloudEvent, in order for
each saga and at least once. Its id is ``{saga id}:{sequence}``, by which a consumer knows what it
has seen already.
"""

import json

from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from tests.fundamentals.test_your_first_saga import book
from tests.support.driving import entries, story
from tests.support.waiting import eventually


async def test_a_consumer_reads_what_the_history_says_in_its_order(
    hotel: Redis, pool: Pool
) -> None:
    saga = await book(hotel, pool, room=111, guest="bob")
    expected = [line.split()[0] for line in await story(pool, saga)]

    async def all_told() -> bool:
        return len(await entries(hotel, streams.EVENTS)) == len(expected)

    await eventually(all_told)
    events = [json.loads(entry[b"data"]) for _, entry in await entries(hotel, streams.EVENTS)]

    assert [event["type"] for event in events] == expected
    assert [event["id"] for event in events] == [
        f"{saga.saga_id}:{number}" for number in range(len(expected))
    ]
    assert {event["subject"] for event in events} == {str(saga.saga_id)}
