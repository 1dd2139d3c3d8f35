"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable


def wait_until(
    predicate: Callable[[], object],
    timeout: float = 10.0,
    every: float = 0.02,
    message: str = "",
) -> None:
    """Return as soon as `predicate()` is true; fail after `timeout` seconds.

    It is asked every `every` seconds. `message` says what was waited for.
    """
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {message or predicate}")
        time.sleep(every)


async def eventually(
    predicate: Callable[[], object | Awaitable[object]],
    timeout: float = 10.0,
    every: float = 0.02,
    message: str = "",
) -> None:
    """The same for a coroutine; `predicate` may be a plain or an async function.

    What is not there at once is asked for less and less often, down to every four times `every`:
    most of what tests ask is a query, and to ask it fifty times a second costs more than the work
    that is waited for.
    """
    deadline = time.monotonic() + timeout
    pause = every
    while True:
        answer = predicate()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {message or predicate}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.15, every * 4)
