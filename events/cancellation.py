"""Cancels that must not get lost.

Before Python 3.12 ``asyncio.wait_for`` swallows a cancel that comes in the moment in which what it
waits for is done, and redis-py sends every command with it. A loop that is cancelled just then
would go on for ever, and a worker would never stop.
"""

import asyncio
from collections.abc import Sequence
from typing import Any


def obey_cancel() -> None:
    """To be called once a turn by a loop that runs until it is cancelled: raise a lost cancel."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def end(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    """Cancel the tasks, again if need be, and wait until all of them have ended."""
    while alive := [task for task in tasks if not task.done()]:
        for task in alive:
            task.cancel()
        await asyncio.wait(alive, timeout=1.0)
    await asyncio.gather(*tasks, return_exceptions=True)
