"""Waiting for changes of sagas: one query a tick for all waiters, and none without waiters.

A waiter holds no connection of the pool, so a thousand open streams cost as much as one.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import asyncpg
from fastapi import Depends
from starlette.requests import HTTPConnection

from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.statuses import ACTIVE_STATUSES

_QUICK, _SLOW, _OUTAGE = 0.02, 0.25, 1.0
_YOUNG: Final = 3.0
"""Seconds during which a new saga is likely to end soon, and is polled more often."""


@dataclass(eq=False, slots=True)
class _Waiting:
    saga_id: UUID
    beyond: int | None
    since: float
    moved: asyncio.Future[None]


class SagaWatcher:
    """Polls the sagas in Postgres for all waiters of one process."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: set[_Waiting] = set()
        self._task: asyncio.Task[None] | None = None
        self.stopping = False
        self.held: Counter[Any] = Counter()
        """How many streams and waits each caller has open (``concurrency``)."""

    async def moved(self, saga_id: UUID, beyond: int, within: float) -> bool:
        """Wait until the saga has an event at or above sequence ``beyond``; False: timed out."""
        return await self._wait(saga_id, beyond, within)

    async def over(self, saga_id: UUID, within: float) -> bool:
        """Wait until nothing more happens by itself; False: timed out after ``within`` seconds."""
        return await self._wait(saga_id, None, within)

    def stop(self) -> None:
        """The process ends: release all waiters at once, as if their time were up."""
        self.stopping = True
        for waiting in self._waiting:
            waiting.moved.cancel()

    async def _wait(self, saga_id: UUID, beyond: int | None, within: float) -> bool:
        if self.stopping:
            return False
        loop = asyncio.get_running_loop()
        waiting = _Waiting(saga_id, beyond, time.monotonic(), loop.create_future())
        self._waiting.add(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="saga-watch")
        try:
            await asyncio.wait([waiting.moved], timeout=within)
            return waiting.moved.done() and not waiting.moved.cancelled()
        finally:
            waiting.moved.cancel()
            self._waiting.discard(waiting)

    async def _look(self) -> None:
        while self._waiting:
            pause = _SLOW
            try:
                rows = await self._pool.fetch(_LOOK, list({w.saga_id for w in self._waiting}))
            except (asyncpg.PostgresError, *TRANSIENT):
                pause = _OUTAGE
            else:
                seen = {row["saga_id"]: row for row in rows}
                for waiting in self._waiting:
                    row = seen.get(waiting.saga_id)
                    if row is None or waiting.moved.done():
                        continue
                    if row["over"] if waiting.beyond is None else row["next"] > waiting.beyond:
                        waiting.moved.set_result(None)
                youngest = max((w.since for w in self._waiting), default=0.0)
                if time.monotonic() - youngest < _YOUNG:
                    pause = _QUICK
            await asyncio.sleep(pause)


def watcher_of(connection: HTTPConnection) -> SagaWatcher:
    """The watcher of the connection's application."""
    watch: SagaWatcher = connection.app.state.watch
    return watch


Watching = Annotated[SagaWatcher, Depends(watcher_of)]
"""Route dependency: ``async def route(watch: Watching)``."""

_LOOK: Final = f"""
SELECT saga_id, next_sequence AS next, NOT {ACTIVE_STATUSES} AS over
FROM evosaga.sagas WHERE saga_id = ANY($1)
"""  # noqa: S608  # constants only
