"""Trimming the streams: by age and by bytes, and never past what a group has yet to read.

Never by length: MAXLEN would silently drop what nobody has read yet.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from evosaga.events.streams import COMMANDS, GROUP, as_text

_SLICE: Final = 10_000
"""Entries that one command drops at most: Redis does nothing else meanwhile, for a millisecond."""
_ROUNDS: Final = 40
"""Looks at the size, at the most: each drops the share of the time that is too much, and entries
are not spread evenly over it."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long entries stay, in seconds, and how many bytes they may have; 0: as many as come."""

    seconds: float
    most_bytes: int = 0


async def trim(redis: Redis, stream: str, keep: Retention) -> int:
    """Drop entries that are older than that, or too many, *and* below everything unread or pending.

    Returns how many. A clock that is ahead drops nothing: an entry is old when this machine's clock
    and that of Redis, which gave it its id, both say so.
    """
    unread = await _unread(redis, stream)
    if unread is None:
        return 0
    now = min(time.time(), (await redis.time())[0])
    dropped = await _drop(redis, stream, [_id(now - keep.seconds), *unread])
    return dropped + await trim_bytes(redis, stream, keep.most_bytes, unread)


async def trim_bytes(
    redis: Redis, stream: str, most: int, unread: Sequence[str] | None = None
) -> int:
    """Drop the oldest entries until the stream has so many bytes, or nothing read is left in it.

    ``unread``: where the groups are, if that is known already.
    """
    dropped = 0
    if most <= 0:
        return 0
    for _ in range(_ROUNDS):
        size = await size_of(redis, stream)
        if size <= most:
            break
        if unread is None:
            unread = await _unread(redis, stream)
        if unread is None:
            break
        about: Any = await redis.xinfo_stream(stream)
        if about["first-entry"] is None:
            break
        first = _stream_id(as_text(about["first-entry"][0]))[0]
        last = _stream_id(as_text(about["last-generated-id"]))[0]
        if not (gone := await _drop_share(redis, stream, (first, last), most / size, unread)):
            break
        dropped += gone
    return dropped


async def _drop_share(
    redis: Redis, stream: str, span: tuple[int, int], kept: float, unread: Sequence[str]
) -> int:
    """Drop the older part of a stream, so that about that share of its time is kept.

    Nearly all may have come at the end of it, and Redis drops whole nodes only: while nothing is
    dropped half of what would be kept goes as well, down to the last moment of it.
    """
    first, last = span
    # At least a moment more than the first, or what came in one burst would stay for ever.
    until = first + max(1, int((last - first) * (1 - kept)))
    while not (gone := await _drop(redis, stream, [f"{until}-0", *unread])) and until <= last:
        until = max(until + 1, last - (last - until) // 2)
    return gone


async def size_of(redis: Redis, stream: str) -> int:
    """Bytes of memory that the stream has, as Redis estimates them."""
    said: Any = await redis.memory_usage(stream)
    return int(said or 0)


async def _unread(redis: Redis, stream: str) -> list[str] | None:
    """Below which ids everything was read, for each group; None: nothing may be dropped."""
    try:
        groups = await redis.xinfo_groups(stream)
    except ResponseError as error:
        if "no such key" in str(error):  # nothing was ever written to it
            return None
        raise
    if stream == COMMANDS and GROUP not in [as_text(group["name"]) for group in groups]:
        return None  # the group is gone for a moment, and what nobody has read is not known
    floors: list[str] = []
    for group in groups:
        floors.append(as_text(group["last-delivered-id"]))
        pending = await redis.xpending(stream, as_text(group["name"]))
        if pending["min"] is not None:
            floors.append(as_text(pending["min"]))
    return floors


async def _drop(redis: Redis, stream: str, floors: Sequence[str]) -> int:
    floor, dropped = min(floors, key=_stream_id), 0
    while slice_ := await redis.xtrim(stream, minid=floor, approximate=True, limit=_SLICE):
        dropped += slice_
    return dropped


def _id(at: float) -> str:
    return f"{max(0, int(at * 1000))}-0"


def _stream_id(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)
