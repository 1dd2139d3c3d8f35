"""In a Redis Cluster: how far follow-up commands were told, and whether that was lost since.

On a single Redis one script tells events and the commands that follow from them. In a cluster the
two streams are on different nodes, and a failover may take the last commands away and leave the
events, and the relay's position, as they are. So the commands go first, with a mark beside their
stream, and a note of that mark is kept beside the events. Where the mark is behind the note,
commands were lost, and the relay goes back to the mark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from evosaga.events.slots import beside, same_slot
from evosaga.events.streams import COMMANDS, EVENTS, as_text

_MARK: Final = "evosaga:commands:told"
_NOTE: Final = "evosaga:events:told:commands"


@dataclass(frozen=True, slots=True)
class Lost:
    """Follow-up commands are gone that come from events above ``after``; None: all of them."""

    after: int | None


def apart(redis: "Redis") -> bool:
    """Whether the streams may be on different nodes."""
    return not same_slot(redis, COMMANDS, EVENTS)


async def tell(redis: "Redis", commands: Sequence[bytes], up_to: int) -> None:
    """XADD follow-up commands of events up to that position. A second time is harmless."""
    if commands:
        await _raise(redis, (COMMANDS, _mark(redis)), up_to, *commands)
        await _raise(redis, (EVENTS, _note(redis)), up_to)


async def lost(redis: "Redis") -> Lost | None:
    """What is missing of what was told; None when nothing is. Raises ``RedisError``."""
    note = _number(await redis.get(_note(redis)))
    if note is None:
        return None
    mark = _number(await redis.get(_mark(redis)))
    return Lost(mark) if mark is None or mark < note else None


async def correct(redis: "Redis", position: int) -> None:
    """The relay has gone back to that position: what is above is no loss any more."""
    await redis.set(_note(redis), str(position))
    await _raise(redis, (COMMANDS, _mark(redis)), position)


def _mark(redis: "Redis") -> str:
    return beside(redis, COMMANDS, _MARK)


def _note(redis: "Redis") -> str:
    return beside(redis, EVENTS, _NOTE)


async def _raise(redis: "Redis", keys: tuple[str, str], up_to: int, *commands: bytes) -> None:
    await redis.eval(_RAISE, len(keys), *keys, str(up_to), *commands)


def _number(value: Any) -> int | None:
    return int(text) if (text := as_text(value or b"")).isdecimal() else None


_RAISE: Final = """
for i = 2, #ARGV do redis.call('XADD', KEYS[1], '*', 'data', ARGV[i]) end
local held = redis.pcall('GET', KEYS[2])
local known = type(held) == 'string' and string.match(held, '^%d+$')
if not known or tonumber(held) < tonumber(ARGV[1]) then redis.call('SET', KEYS[2], ARGV[1]) end
"""
