"""The key in Redis that lets webhook workers route without a query.

A worker that was stopped may wake up and fill a key that was removed meanwhile, so a removal
leaves a mark that names the integration, and a fill for that integration is refused.
"""

import json
from collections.abc import Awaitable
from typing import Final, cast

from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sagas.outcome import Done, Held, Outcome, Rejected, Unknown
from sagas.world import StepContext

TTL: Final = 3600
_MARK_TTL: Final = 2 * TTL

# redis-py takes the first word off an error for which it has a class.
_PASSING: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_PASSING_WORDS: Final = ("NOREPLICAS", "MISCONF", "BUSY", "OOM", "READONLY", "LOADING")

_FILL: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


def key(instance_name: str) -> str:
    """The routing key of an instance."""
    return f"whatsapp:instance:{instance_name}"


async def fill(ctx: StepContext) -> Outcome:
    """Set the routing key for an hour."""
    name = ctx.facts["instance_name"]
    value = {
        "clinic_id": str(ctx.input.clinic_id),
        "organization_id": str(ctx.input.organization_id),
        "name": ctx.input.name,
        "whatsapp_number": None,
    }
    keys = (key(name), _mark(name))
    arguments = (str(ctx.saga_id), json.dumps(value, ensure_ascii=False), str(TTL))
    try:
        filled = await cast(
            Awaitable[int], ctx.world.redis.eval(_FILL, len(keys), *keys, *arguments)
        )
    except RedisError as error:
        return trouble(error)
    return Done() if filled else Rejected("removed", "the integration was removed meanwhile")


async def invalidate(ctx: StepContext) -> Outcome:
    """Drop the routing key and the QR code, and leave the mark."""
    name = ctx.facts["instance_name"]
    try:
        pipeline = ctx.world.redis.pipeline(transaction=True)
        pipeline.delete(key(name), f"evosaga:qr:{name}")
        pipeline.set(_mark(name), ctx.facts["created_by"], ex=_MARK_TTL)
        await pipeline.execute()
    except RedisError as error:
        return trouble(error)
    return Done()


def trouble(error: RedisError) -> Held | Unknown:
    """A Redis that is down or refuses writes is waited for; anything else costs an attempt."""
    name = type(error).__name__
    if isinstance(error, _PASSING) or str(error).startswith(_PASSING_WORDS):
        return Held("redis_unavailable", f"Redis is unavailable: {name}", in_doubt=True)
    return Unknown("redis_error", f"Redis answered with an error: {name}")


def _mark(instance_name: str) -> str:
    return f"evosaga:removed:{instance_name}"
