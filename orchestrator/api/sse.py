"""A saga's events as server-sent events, read from Postgres without holding a connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from evosaga.events.database import TRANSIENT, Pool
from evosaga.orchestrator.api.saga_watcher import SagaWatcher
from evosaga.orchestrator.api.schemas import cloud_event
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history

KEEP_ALIVE: Final = 15.0
"""Seconds of silence after which a comment is sent: proxies close silent connections."""


def last_seen(header: str | None) -> int:
    """The sequence in ``Last-Event-ID``; -1, the beginning, when it is absent or invalid."""
    _, _, tail = (header or "").rpartition(":")
    return int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 10 else -1


async def tell(pool: Pool, watch: SagaWatcher, view: SagaView, seen: int) -> AsyncIterator[bytes]:
    """The messages above sequence ``seen``, until the saga is over or the process ends."""
    yield b"retry: 2000\n\n"
    while not watch.stopping:
        try:
            for recorded in await history(pool, view.saga_id, seen):
                seen = recorded.sequence
                head = f"id: {seen}\nevent: {recorded.event.type}\ndata: "
                yield head.encode() + cloud_event(view, recorded) + b"\n\n"
            now = await find_saga(pool, str(view.saga_id))
        except TRANSIENT:  # the stream outlives an outage of Postgres
            yield b": waiting\n\n"
            await asyncio.sleep(1.0)
            continue
        if now is None:
            return
        if now.over and now.sequence <= seen + 1:
            yield b'event: over\ndata: {"status":"' + now.status.encode() + b'"}\n\n'
            return
        if now.sequence > seen + 1:
            continue
        if not await watch.moved(view.saga_id, seen + 1, KEEP_ALIVE):
            yield b": keep-alive\n\n"
