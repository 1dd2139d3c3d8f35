"""A cancel that a library swallows stops the worker all the same."""

import asyncio
import contextlib

import pytest

from evosaga.events.cancellation import end, obey_cancel


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
