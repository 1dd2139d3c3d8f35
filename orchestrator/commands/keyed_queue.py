"""Runs work in parallel across keys and in order within a key."""

import asyncio
from collections.abc import Awaitable, Callable


class KeyedQueue:
    """At most ``most`` keys at the same time; ``begin`` waits when there are more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: dict[str, asyncio.Task[None]] = {}

    async def begin(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin this work as soon as what was begun for the same ``key`` is over.

        ``work`` must not raise: no caller waits for it.
        """
        while key not in self._last and len(self._last) >= self._most:
            await asyncio.wait(self._last.values(), return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._after(self._last.get(key), work), name=f"turn-{key}")
        self._last[key] = task
        task.add_done_callback(lambda done: self._over(key, done))

    async def rest(self) -> None:
        """Wait until all that was begun is over."""
        if self._last:
            await asyncio.wait(self._last.values())

    async def _after(
        self, before: "asyncio.Task[None] | None", work: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await work()

    def _over(self, key: str, done: "asyncio.Task[None]") -> None:
        if self._last.get(key) is done:
            del self._last[key]
