"""What the streams will need of Redis's memory once they hold all that they are to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from evosaga.events.retention import Retention, size_of
from evosaga.events.streams import as_text

_SHORTEST: Final = 600.0
"""Seconds that a stream must span before its rate means anything."""


@dataclass(frozen=True, slots=True)
class StreamMemory:
    """One stream. ``span``: seconds from its first entry to its last one."""

    stream: str
    entries: int
    size: int
    span: float
    keep: Retention

    @property
    def announced(self) -> int | None:
        """Bytes that it will have at its rate so far, or at most; None: it is too young to say."""
        if self.span < _SHORTEST:
            return self.keep.most_bytes or None
        full = int(self.size * max(1.0, self.keep.seconds / self.span))
        return min(full, self.keep.most_bytes) if self.keep.most_bytes else full


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Bytes. ``room``: what Redis may have in all; None: it does not say."""

    streams: Sequence[StreamMemory]
    used: int
    room: int | None

    @property
    def announced(self) -> int:
        """What Redis will have once the streams are as long as they get."""
        growth = (max(0, (one.announced or one.size) - one.size) for one in self.streams)
        return self.used + sum(growth)

    @property
    def fits(self) -> bool:
        """Whether that is within what it may have."""
        return self.room is None or self.announced <= self.room


async def forecast(
    redis: Redis, names: Sequence[str], keep: Retention, infos: Sequence[Mapping[str, Any]]
) -> MemoryForecast:
    """Of these streams. ``infos``: what INFO says of each master; the fullest counts, and the
    smallest, since any of a cluster may have the streams."""
    rooms = [
        int(info.get("maxmemory") or 0) or int(info.get("total_system_memory") or 0)
        for info in infos
    ]
    found = [one for name in names if (one := await _stream(redis, name, keep)) is not None]
    used = max(int(info.get("used_memory") or 0) for info in infos)
    return MemoryForecast(found, used, min(rooms) or None)


async def _stream(redis: Redis, name: str, keep: Retention) -> StreamMemory | None:
    try:
        about: Any = await redis.xinfo_stream(name)
    except ResponseError:  # nothing was ever written to it
        return None
    if about["first-entry"] is None:
        return None
    first, last = (
        int(as_text(id_).partition("-")[0])
        for id_ in (about["first-entry"][0], about["last-generated-id"])
    )
    size = await size_of(redis, name)
    return StreamMemory(name, int(about["length"]), size, (last - first) / 1000, keep)
