"""Trimming the streams: by age, and never past what somebody has yet to read.

Never by length: MAXLEN would silently drop what nobody has read yet.
"""

import time
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from evosaga.events.streams import COMMANDS, GROUP, as_text

_SLICE: Final = 10_000
"""Entries that one command drops at most: Redis does nothing else meanwhile, for a millisecond."""


async def trim(redis: Redis, stream: str, keep_seconds: float) -> int:
    """Drop entries that are older than that *and* below everything unread or pending; how many.

    A clock that is ahead drops nothing: an entry is old when this machine's clock and that of
    Redis, which gave it its id, both say so.
    """
    try:
        groups = await redis.xinfo_groups(stream)
    except ResponseError as error:
        if "no such key" in str(error):  # nothing was ever written to it
            return 0
        raise
    if stream == COMMANDS and GROUP not in [as_text(group["name"]) for group in groups]:
        return 0  # the group is gone for a moment, and what nobody has read is not known
    now = min(time.time(), (await redis.time())[0])
    floors = [f"{max(0, int((now - keep_seconds) * 1000))}-0"]
    for group in groups:
        floors.append(as_text(group["last-delivered-id"]))
        pending = await redis.xpending(stream, as_text(group["name"]))
        if pending["min"] is not None:
            floors.append(as_text(pending["min"]))
    floor, dropped = min(floors, key=_stream_id), 0
    while slice_ := await redis.xtrim(stream, minid=floor, approximate=True, limit=_SLICE):
        dropped += slice_
    return dropped


def _stream_id(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number or 0)
