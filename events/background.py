"""Background work: a loop that runs until its task is cancelled, and tasks that are ended.

Before Python 3.12 ``asyncio.wait_for`` swallows a cancel that comes in the moment in which what it
waits for is done, and redis-py sends every command with it. A loop that is cancelled just then
would go on for ever, and a worker would never stop.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, NoReturn


class Broken(Exception):
    """A part of a process ended that never should. Ours to mend; the supervisor restarts us."""


async def repeat(
    turn: Callable[[], Awaitable[float]],
    *,
    first: float = 0.0,
    nudge: asyncio.Event | None = None,
    gather: float = 0.0,
    jitter: float = 0.0,
) -> NoReturn:
    """Call ``turn`` until this task is cancelled; each call returns the seconds until the next.

    What ``turn`` raises ends the loop: it handles the errors that it outlives itself.
    ``first``: seconds before the first call. ``nudge``: set, it ends a pause early, after
    ``gather`` more seconds for what else comes in; it is cleared before each call. ``jitter``: the
    share by which a pause is made longer or shorter at random, so that workers drift apart.
    """
    pause = first
    while True:
        pause *= random.uniform(1 - jitter, 1 + jitter)  # noqa: S311  # not a secret
        await _pause(pause, nudge, gather)
        pause = await turn()
        obey_cancel()


async def _pause(seconds: float, nudge: asyncio.Event | None, gather: float) -> None:
    if nudge is None:
        await asyncio.sleep(seconds)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await nudge.wait()
        await asyncio.sleep(gather)
    nudge.clear()


def obey_cancel() -> None:
    """To be called once a turn by a loop that runs until it is cancelled: raise a lost cancel."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def each(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of it at the same time. The first that fails ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except ExceptionGroup as several:
        raise several.exceptions[0] from several


async def end(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    """Cancel the tasks, again if need be, and wait until all of them have ended."""
    while alive := [task for task in tasks if not task.done()]:
        for task in alive:
            task.cancel()
        await asyncio.wait(alive, timeout=1.0)
    await asyncio.gather(*tasks, return_exceptions=True)
