"""The stream ``wa:events``: what Evolution's webhooks tell that is not ours to apply.

Messages above all.
"""

from collections.abc import Mapping
from typing import Final

from redis.asyncio import Redis

from evosaga.events.slots import beside

STREAM: Final = "wa:events"


def told_key(digest: str, redis: Redis | None = None) -> str:
    """There while a webhook of this digest is not published again. None: on a single Redis."""
    plain = f"evosaga:told:{digest}"
    return plain if redis is None else beside(redis, STREAM, plain)


async def publish(
    redis: Redis, digest: str, fields: Mapping[str, str], remember_seconds: int
) -> bool:
    """XADD what a webhook told; False when it was told before.

    ``digest`` is the same for the same webhook. It is looked at and noted in one script with the
    XADD, which comes first: what fails in between is told twice rather than never.
    """
    arguments = [item for pair in fields.items() for item in pair]
    keys = (STREAM, told_key(digest, redis))
    return bool(await redis.eval(_TELL_ONCE, len(keys), *keys, str(remember_seconds), *arguments))


_TELL_ONCE: Final = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('SET', KEYS[2], '', 'EX', ARGV[1])
return 1
"""
