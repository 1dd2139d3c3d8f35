"""Watching a saga in Postgres until it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from evosaga.events.model import Recorded
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history

if TYPE_CHECKING:
    from evosaga.events.database import Pool

_POLL: Final = 0.05


@dataclass(slots=True)
class Seen:
    """What is known of a saga so far; ``view`` is None until it exists."""

    view: SagaView | None = None
    history: list[Recorded] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.view is not None and self.view.over


Watch = Callable[[Seen, Sequence[Recorded]], None]
"""Told what is known and which events are new, each time there are any."""


async def look(pool: Pool, saga_id: UUID, seen: Seen) -> list[Recorded]:
    """Bring ``seen`` up to date; the events that are new."""
    view = await find_saga(pool, str(saga_id))
    if view is None or view.saga_id != saga_id:  # an instance may be named like a UUID
        return []
    last = seen.history[-1].sequence if seen.history else -1
    fresh = await history(pool, saga_id, last) if view.sequence > last + 1 else []
    seen.view = view
    seen.history += fresh
    return fresh


async def follow(
    pool: Pool,
    saga_id: UUID,
    watch: Watch,
    *,
    timeout: float | None = None,
    meanwhile: Callable[[Seen], Awaitable[None]] | None = None,
) -> Seen:
    """Watch until the saga is over, or for ``timeout`` seconds.

    ``meanwhile`` is called after every look, before anything is shown; it may raise.
    """
    seen, deadline = Seen(), None if timeout is None else time.monotonic() + timeout
    while True:
        fresh = await look(pool, saga_id, seen)
        if meanwhile is not None:
            await meanwhile(seen)
        if fresh:
            watch(seen, fresh)
        if seen.over:
            return seen
        if deadline is not None and time.monotonic() >= deadline:
            return seen
        await asyncio.sleep(_POLL)
