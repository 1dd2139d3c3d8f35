"""The relay's position in Redis, and the proof that Redis still has what was published.

The position is one in the log. The proof names the entry that was last on the stream when the
position was written, and how many entries had ever been added. Both are written by the script that
publishes (in a cluster they are in the hash slot of the stream), so they are lost together with the
end of an append-only file or with a master that fails; a stream that was evicted, deleted or
flushed alone no longer matches its proof. A position without a matching proof is ignored: the relay
reads the stream instead and writes a new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import follow_up_position
from evosaga.events.slots import beside
from evosaga.events.streams import COMMANDS, EVENTS

TOLD: Final = "evosaga:events:told"
"""The position: a number alone, as older releases read and write it."""
PROOF: Final = "evosaga:events:told:proof"
"""``position entry-id entries-added`` of the same moment."""


class OutOfStep(RedisError):
    """Redis is not where the relay left it: it lost data, or another relay published more.

    Nothing was published; read the position again.
    """


@dataclass(frozen=True, slots=True)
class RelayPosition:
    """The position and its proof.

    ``up_to`` is None when there is no position, or an untrusted one: ``wrong`` says why.
    """

    raw: bytes
    up_to: int | None
    wrong: str | None = None
    commands_lost: bool = False
    """In a cluster: follow-up commands are gone that were told with it."""


_NOTHING: Final = RelayPosition(b"", None)
_WRONG: Final = {
    b"type": "is no text",
    b"number": "is no position",
    b"unproved": "has no proof beside it",
    b"lost": "speaks of events that are not on the stream any more",
}


async def read(redis: "Redis") -> RelayPosition:
    """The position of this Redis, as far as its proof matches."""
    raw, verdict = cast(tuple[bytes, bytes], await _run(redis, _READ))
    if verdict == b"none":
        return _NOTHING
    if verdict != b"sound":
        return RelayPosition(raw, None, _WRONG[verdict])
    if follow_up_position.apart(redis) and (lost := await follow_up_position.lost(redis)):
        after = None if lost.after is None else min(lost.after, int(raw))
        return RelayPosition(raw, after, commands_lost=True)
    return RelayPosition(raw, int(raw))


async def tell(
    redis: "Redis",
    events: Sequence[bytes],
    commands: Sequence[bytes],
    before: RelayPosition,
    up_to: int,
) -> None:
    """XADD events in order, and their follow-up commands, and store the new position.

    All or nothing, in a script: a Redis that is short of memory could refuse one XADD of a pipeline
    and accept the next. Raises ``OutOfStep`` unless the position is still ``before``. In a cluster
    the commands go before, to their own node.
    """
    if commands and follow_up_position.apart(redis):
        await follow_up_position.tell(redis, commands, up_to)
        commands = ()
    count = str(len(events))
    if not await _run(redis, _TELL, before.raw, str(up_to), count, *events, *commands):
        raise OutOfStep("Redis is not where it was")


def after_telling(redis: "Redis", up_to: int) -> RelayPosition | None:
    """The position that ``tell`` has written; None in a cluster, where what is beside it has to be
    looked at each time.
    """
    return None if follow_up_position.apart(redis) else RelayPosition(str(up_to).encode(), up_to)


async def replace(redis: "Redis", before: RelayPosition, position: int) -> None:
    """Write the position read from the stream, unless another relay did meanwhile. Repairs wrong
    ones.
    """
    await _run(redis, _REPLACE, before.raw, str(position))
    if before.commands_lost:
        await follow_up_position.correct(redis, position)


async def go_back(redis: "Redis", position: int) -> None:
    """Make the relay publish everything above that position again."""
    await replace(redis, await read(redis), position)


async def _run(redis: "Redis", script: str, *arguments: str | bytes) -> Any:
    keys = [*(beside(redis, EVENTS, key) for key in (TOLD, PROOF)), EVENTS]
    if not follow_up_position.apart(redis):
        keys.append(COMMANDS)
    return await redis.eval(_COMMON + script, len(keys), *keys, *arguments)


_COMMON: Final = """
local function text(key)
  local value = redis.pcall('GET', key)
  if type(value) ~= 'table' then return value or '' end
  if string.find(value.err, 'WRONGTYPE', 1, true) then return ' wrong type' end
  return redis.call('GET', key)
end
local function stream()
  local said = redis.pcall('XINFO', 'STREAM', KEYS[3])
  local found = {}
  if said.err then
    if not string.find(said.err, 'no such key', 1, true) then return nil, said end
    said = {}
  end
  for i = 1, #said, 2 do found[said[i]] = said[i + 1] end
  return {last = found['last-generated-id'] or '0-0', added = found['entries-added'] or 0}
end
local function at_least(one, other)
  local a, b = string.match(one, '^(%d+)-(%d+)$')
  local c, d = string.match(other, '^(%d+)-(%d+)$')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  return a > c or (a == c and b >= d)
end
-- Proved by the entry itself, or, once it was trimmed, by a stream that has gone on since.
local function verdict(told)
  if told == ' wrong type' then return 'type' end
  if not string.match(told, '^%d+$') or #told > 18 then return 'number' end
  local of, last, added = string.match(text(KEYS[2]), '^(%d+) (%d+%-%d+) (%d+)$')
  if of ~= told then return 'unproved' end
  local now, trouble = stream()
  if trouble then return nil, trouble end
  if at_least(now.last, last) and now.added >= tonumber(added) then return 'sound' end
  if #redis.call('XRANGE', KEYS[3], last, last) == 1 then return 'sound' end
  return 'lost'
end
local function note(position)
  local now, trouble = stream()
  if trouble then return trouble end
  local proof = position .. ' ' .. now.last .. ' ' .. now.added
  redis.call('SET', KEYS[1], position)
  redis.call('SET', KEYS[2], proof)
end
"""
_READ: Final = """
local told = text(KEYS[1])
if told == '' then return {told, 'none'} end
local said, trouble = verdict(told)
return trouble or {told, said}
"""
_TELL: Final = """
local told = text(KEYS[1])
if told ~= ARGV[1] then return 0 end
if told ~= '' then
  local said, trouble = verdict(told)
  if trouble then return trouble end
  if said ~= 'sound' then return 0 end
end
-- Whoever may not write the note must not add the same events again and again.
local _, trouble = stream()
if trouble then return trouble end
redis.call('SET', KEYS[2], '')
local events = tonumber(ARGV[3])
for i = 4, #ARGV do
  redis.call('XADD', i - 3 <= events and KEYS[3] or KEYS[4], '*', 'data', ARGV[i])
end
return note(ARGV[2]) or 1
"""
_REPLACE: Final = """
if text(KEYS[1]) ~= ARGV[1] then return 0 end
return note(ARGV[2]) or 1
"""
