"""Single-flight: concurrent callers share one request and its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")


class SingleFlight(Generic[_Answer]):
    """Asks once for many. Every caller gets an answer to a question that was asked after it came.

    An answer that was under way already may be older than what the caller wants to know about, so
    it waits for the next one, together with all who have come meanwhile. Never two at once.
    """

    def __init__(self, ask: Callable[[], Awaitable[_Answer]]) -> None:
        self._ask = ask
        self._under_way: asyncio.Task[_Answer] | None = None
        self._next: asyncio.Task[_Answer] | None = None

    async def __call__(self) -> _Answer:
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._under_way))
        # A caller that gives up does so alone: the others still wait.
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """Ask no more; who still waits is cancelled."""
        tasks = [task for task in (self._under_way, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _after(self, before: "asyncio.Task[_Answer] | None") -> _Answer:
        if before is not None:
            await asyncio.wait((before,))
        self._under_way, self._next = self._next, None
        try:
            return await self._ask()
        finally:
            self._under_way = None  # an answer may be large
