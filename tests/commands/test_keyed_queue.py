"""Steering does not hold up those who come behind it, and keeps its order."""

import asyncio

from evosaga.orchestrator.commands.keyed_queue import KeyedQueue
from tests.support.waiting import eventually


async def test_of_one_key_one_thing_follows_the_other_and_other_keys_do_not_wait() -> None:
    turns, gate, told = KeyedQueue(10), asyncio.Event(), list[str]()

    async def slow() -> None:
        await gate.wait()
        told.append("slow")

    async def say(what: str) -> None:
        told.append(what)

    await turns.begin("a", slow)
    await turns.begin("a", lambda: say("behind it"))
    await turns.begin("b", lambda: say("elsewhere"))
    await eventually(lambda: told == ["elsewhere"])
    gate.set()
    await turns.rest()
    assert told == ["elsewhere", "slow", "behind it"]


async def test_who_brings_more_than_there_are_places_waits_for_one() -> None:
    turns, gates, begun = KeyedQueue(2), [asyncio.Event() for _ in range(3)], list[int]()

    async def work(n: int) -> None:
        begun.append(n)
        await gates[n].wait()

    await turns.begin("0", lambda: work(0))
    await turns.begin("1", lambda: work(1))
    third = asyncio.create_task(turns.begin("2", lambda: work(2)))
    await eventually(lambda: begun == [0, 1])
    assert not third.done()
    gates[1].set()
    await third
    for gate in gates:
        gate.set()
    await turns.rest()
    assert begun == [0, 1, 2]
