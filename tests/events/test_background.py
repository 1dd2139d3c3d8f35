"""A cancel that a library swallows stops the worker all the same."""

import asyncio
import contextlib

import pytest

from evosaga.events.background import end, obey_cancel, repeat
from tests.support.waiting import eventually


async def deaf(turns: list[int], losing: int) -> None:
    """Loses so many cancels, as ``wait_for`` does before Python 3.12 when it is unlucky."""
    while True:
        turns.append(1)
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            losing -= 1
            if losing < 0:
                raise


async def obedient(turns: list[int]) -> None:
    while True:
        turns.append(1)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
        obey_cancel()


async def test_a_loop_that_asks_once_a_turn_obeys_a_cancel_that_was_swallowed() -> None:
    turns: list[int] = []
    task = asyncio.create_task(obedient(turns))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert turns


async def test_tasks_are_cancelled_until_they_have_ended() -> None:
    turns: list[int] = []
    tasks = [asyncio.create_task(deaf(turns, losing)) for losing in (0, 1, 2)]
    await asyncio.sleep(0)
    await end(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_failed_is_no_reason_to_stop_ending_the_others() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    tasks = [asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await end(tasks)
    assert all(task.done() for task in tasks)


class TestRepeat:
    async def test_waits_as_long_as_the_last_turn_says(self) -> None:
        times: list[float] = []

        async def turn() -> float:
            times.append(asyncio.get_running_loop().time())
            return 0.02 if len(times) < 3 else 60.0

        task = asyncio.create_task(repeat(turn, first=0.03))
        began = asyncio.get_running_loop().time()
        await eventually(lambda: len(times) == 3)
        await end([task])
        assert times[0] - began >= 0.03
        assert times[2] - times[0] >= 0.04

    async def test_a_nudge_ends_a_pause_and_counts_once(self) -> None:
        turns, nudge = 0, asyncio.Event()

        async def turn() -> float:
            nonlocal turns
            turns += 1
            return 60.0

        task = asyncio.create_task(repeat(turn, nudge=nudge, gather=0.01))
        await eventually(lambda: turns == 1)
        for _ in range(3):  # all within the time in which nudges are gathered
            nudge.set()
        await eventually(lambda: turns == 2)
        assert not nudge.is_set()
        await end([task])
        assert turns == 2

    async def test_obeys_a_cancel_that_its_turn_swallowed(self) -> None:
        async def turn() -> float:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return 0.0

        task = asyncio.create_task(repeat(turn))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()

    async def test_ends_with_what_its_turn_raises(self) -> None:
        async def turn() -> float:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await repeat(turn)
