"""Reads events of sagas back from the stream ``evosaga:events``, the newest first."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from evosaga.events.streams import EVENTS, FIELD, as_text

_PAGE: Final = 1000
_PAGES: Final = 100


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event of a saga as consumers got it; ``epoch`` is 0 where the event names none."""

    saga_id: UUID
    sequence: int
    type: str
    recorded_at: datetime
    epoch: int
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """As the CloudEvent has it."""
        return f"{self.saga_id}:{self.sequence}"


async def newest(redis: Redis, count: int) -> list[PublishedEvent]:
    """The events of sagas among the newest entries, the newest first.

    Where those are all notices, it looks so many further back, up to a hundred times.
    """
    found: list[PublishedEvent] = []
    last: str | None = "+"
    for _ in range(_PAGES):
        if found or last is None:
            break
        found, last = await _page(redis, last, count)
    return found


async def pages(redis: Redis) -> AsyncIterator[list[PublishedEvent]]:
    """The whole stream, backwards; of each page the events of sagas."""
    last: str | None = "+"
    while last is not None:
        found, last = await _page(redis, last, _PAGE)
        yield found


async def _page(redis: Redis, last: str, count: int) -> tuple[list[PublishedEvent], str | None]:
    """One page, and where the next one begins; None: this was the last."""
    entries: Any = await redis.xrevrange(EVENTS, max=last, count=count)
    found = [event for _, fields in entries if (event := _read(fields)) is not None]
    before = f"({as_text(entries[-1][0])}" if len(entries) == count else None
    return found, before


def _read(fields: Mapping[bytes, bytes]) -> PublishedEvent | None:
    """None for what is no event of a saga, such as a domain's notice."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        told = json.loads(fields[FIELD])
        saga, _, sequence = told["id"].rpartition(":")
        if told["source"] != "/evosaga" or told["subject"] != saga:
            return None
        recorded_at = datetime.fromisoformat(told["time"])
        if recorded_at.tzinfo is None:
            return None
        data = told["data"] if isinstance(told.get("data"), dict) else {}
        return PublishedEvent(
            UUID(saga),
            int(sequence),
            str(told["type"]),
            recorded_at,
            int(told.get("epoch", 0)),
            data,
        )
    return None
