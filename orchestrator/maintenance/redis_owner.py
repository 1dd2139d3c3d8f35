"""Whose Redis it is: one database has it to itself.

Two databases on one Redis would take each other's commands, events and keys without a word. So
the first to come leaves its mark under a key, every other is refused, and a worker that finds the
mark of another one day stops. A database is known by its server's system identifier, which a
physical copy shares with its original, and by its number there. Who loses the mark with the rest
of Redis sets it again within a second.
"""

import contextlib
from typing import Final

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import background, relay_position, streams
from evosaga.events.database import Pool
from evosaga.events.redis_clients import prefix_of
from evosaga.orchestrator.config.settings import SettingsError

OWNER: Final = "evosaga:owner"
_OF_ANOTHER: Final = (
    OWNER,
    streams.EVENTS,
    relay_position.TOLD,
    relay_position.PROOF,
    streams.COMMANDS,
)
"""What a database that is gone has left: this one would take it for its own."""
_EVERY: Final = 1.0
_UNKNOWN: Final = "-"


class RedisTaken(SettingsError):
    """Redis belongs to another database: the operator has to separate or to move them."""


async def identity(pool: Pool) -> str:
    """This database as ``server/number``. Raises what Postgres raises."""
    try:
        server = await pool.fetchval("SELECT system_identifier FROM pg_control_system()")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
        server = _UNKNOWN  # then only databases of other numbers are told apart
    return f"{server}/{await pool.fetchval(_NUMBER)}"


async def claim(redis: Redis, database: str) -> None:
    """Leave the mark where there is none. Raises ``RedisTaken``, and what Redis raises."""
    _judge(await redis.eval(_CLAIM, 1, OWNER, database), database, prefix_of(redis))


async def look(redis: Redis, database: str) -> str | None:
    """Whose mark is there, None where there is none. Raises like ``claim``."""
    found = await redis.eval(_LOOK, 1, OWNER)
    if found:
        _judge(found, database, prefix_of(redis))
    return found.decode() if found else None


async def watch(redis: Redis, database: str, every: float = _EVERY) -> None:
    """Keep the mark, for ever; cancel it to stop. Raises ``RedisTaken`` when it is another's."""

    async def turn() -> float:
        with contextlib.suppress(RedisError, OSError, TimeoutError):  # it is away; others say so
            await claim(redis, database)
        return every

    await background.repeat(turn, first=every)


def _judge(found: bytes | str, database: str, prefix: str) -> None:
    mark = found.decode(errors="replace") if isinstance(found, bytes) else found
    theirs, ours = mark.partition("/"), database.partition("/")
    known = _UNKNOWN not in (theirs[0], ours[0])
    if theirs[2] == ours[2] and (theirs[0] == ours[0] or not known):
        return
    raise RedisTaken(
        "this Redis is another database's, and two on one Redis take each other's commands: give "
        "this one a Redis, a database number (redis://…/1) or an EVOSAGA_REDIS_PREFIX of its own; "
        "or, with the other's workers stopped: if it has become this one (restored, upgraded, "
        f"moved), let this one have it: redis-cli DEL {prefix}{OWNER}; if it is gone and this one "
        "is new, its events would look like events that this one lost, so delete them, too, in a "
        f"cluster one at a time: redis-cli DEL {' '.join(prefix + key for key in _OF_ANOTHER)}"
    )


_NUMBER: Final = "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
_CLAIM: Final = """
local mark = redis.pcall('GET', KEYS[1])
if not mark then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
local wrong = type(mark) == 'table' and string.find(mark.err, 'WRONGTYPE', 1, true)
return wrong and 'wrong type' or mark
"""
_LOOK: Final = """
local mark = redis.pcall('GET', KEYS[1])
local wrong = type(mark) == 'table' and string.find(mark.err, 'WRONGTYPE', 1, true)
return wrong and 'wrong type' or mark
"""
