"""Places at limited resources, shared by all workers: kept in Redis, in the order of asking.

A place is the attempt's own (saga, step and direction) and ends with it, or by itself once the
attempt must be over: a worker that is killed gives its places back no later than that, and whoever
takes its saga over finds the place still its own. Whoever finds none is told when to ask again and
keeps its turn meanwhile; one that does not come in time is passed by, and keeps its turn.

Without Redis nobody gets a place: a limit protects somebody else's system, to which a wait does no
harm. A Redis that has lost its data forgets the attempts that are out, so until these are over
there may be more of them than the limit says.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.sagas.limits import Limit

_logger = structlog.get_logger("evosaga.limits")
LIMITED: Final = "limited"
"""The code of a saga that waits for a place."""
AWAY: Final = 2.0
"""Seconds until it is asked again when Redis is away."""
BOUND: Final = 1.0
"""Seconds that a Redis which does not answer may delay an attempt, or what follows it."""
_SHORTEST: Final = 0.02
_LONGEST: Final = 30.0
"""Seconds between two questions."""
_COUNTED: Final = 500
"""So many of those ahead are looked at; further back the place in the queue is near enough."""
_SPARE: Final = 5.0
"""Seconds that a place outlives the longest that its attempt can take."""


@dataclass(frozen=True, slots=True)
class NoPlace:
    """There is none now. ``again``: seconds until it makes sense to ask again."""

    message: str
    again: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What this worker was told of a limit the last time it asked."""

    held: int
    waiting: int


class Limiter:
    """The places of one worker's attempts."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._token = uuid4().hex
        """Fences the places: what another worker has taken over is not given back here."""
        self.seen: dict[str, Seen] = {}
        self.granted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """By the limit's name, since this worker started."""

    async def enter(
        self, limits: Sequence[Limit], saga_id: UUID, what: str, seconds: float
    ) -> NoPlace | None:
        """A place at each of them for an attempt of ``what`` that takes so long at most.

        None: it has them all. Otherwise it has none, so that nobody waits for it meanwhile.
        """
        mine: list[tuple[Limit, str]] = []
        for limit in sorted(limits, key=lambda one: one.name):
            try:
                async with asyncio.timeout(BOUND):
                    found = await self._ask(limit, f"{saga_id}/{what}", seconds)
            except (RedisError, OSError) as error:
                _logger.warning("limit unknown", limit=limit.name, reason=type(error).__name__)
                said = f"waits for a place at {limit.name}, which only Redis knows, and it is away"
                found = NoPlace(said, AWAY)
            if isinstance(found, NoPlace):
                self.refused[limit.name] += 1
                await self._take_back(mine, f"{saga_id}/{what}")
                return found
            mine.append((limit, found))
        self.granted.update(limit.name for limit, _ in mine)
        return None

    async def leave(
        self, limits: Sequence[Limit], saga_id: UUID, what: str, took: float | None = None
    ) -> None:
        """Give the places back; ``took``: seconds for which they were used."""
        spent = "" if took is None else str(round(took * 1000))
        await self._give([(limit, (spent,)) for limit in limits], f"{saga_id}/{what}")

    async def _take_back(self, unused: Sequence[tuple[Limit, str]], member: str) -> None:
        """Give up places that were not used: its turns, and what a rate has counted, are restored.

        Else whoever waits for two would lose its turn at one of them each time it asks.
        """
        given = [(limit, ("", number, f"{limit.gap * 1000:.3f}")) for limit, number in unused]
        await self._give(given, member)

    async def _give(self, places: Sequence[tuple[Limit, tuple[str, ...]]], member: str) -> None:
        try:
            async with asyncio.timeout(BOUND):
                for limit, more in places:
                    told = (member, self._token, *more)
                    await self._redis.eval(_LEAVE, 3, *keys(limit.name), *told)
        except (RedisError, OSError) as error:  # then they end by themselves
            names = [limit.name for limit, _ in places]
            reason = type(error).__name__
            _logger.warning("place not given back", limits=names, of=member, reason=reason)

    async def _ask(self, limit: Limit, member: str, seconds: float) -> NoPlace | str:
        """Its number in the queue until now; ``NoPlace``: it goes on waiting there."""
        granted, held, waiting, again, number = await self._redis.eval(
            _ENTER,
            3,
            *keys(limit.name),
            member,
            str(limit.concurrency or 0),
            f"{limit.gap * 1000:.3f}",
            str(round((seconds + _SPARE) * 1000)),
            str(round(_SHORTEST * 1000)),
            str(round(_LONGEST * 1000)),
            self._token,
        )
        self.seen[limit.name] = Seen(int(held), int(waiting))
        if granted:
            return number.decode() if isinstance(number, bytes) else str(number)
        return NoPlace(f"waits for a place at {limit.name}", int(again) / 1000)


def keys(name: str) -> tuple[str, str, str]:
    """Who has a place, who waits, and what is known of it; in one slot of a cluster."""
    return tuple(f"evosaga:limit:{{{name}}}:{part}" for part in ("held", "queue", "about"))  # type: ignore[return-value]


async def look(redis: Redis, names: Sequence[str]) -> Mapping[str, Seen]:
    """How many have and wait for a place at each. Raises what Redis raises."""
    found = {}
    for name in names:
        held, waiting = await redis.eval(_LOOK, 3, *keys(name))
        found[name] = Seen(int(held), int(waiting))
    return found


_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, one in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], one)
  redis.call('HDEL', KEYS[3], 'token:' .. one)
end
"""
_LOOK: Final = f"""{_NOW}
return {{redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[2])}}
"""
# In ``about`` each one that waits has the time until which it is waited for; ``tat`` is when the
# next may begin by the rate, ``mean`` how long a place was used of late. All in milliseconds.
# ``token:…`` is of the worker that has a place.
_ENTER: Final = f"""{_NOW}
local held, queue, about, me = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local most, gap, lease = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local mine = redis.call('ZSCORE', held, me)
local number = redis.call('ZSCORE', queue, me)
if not number then
  number = redis.call('HINCRBY', about, 'number', 1)
  redis.call('ZADD', queue, number, me)
end
local ahead = 0
local rank = redis.call('ZRANK', queue, me)
for _, one in ipairs(redis.call('ZRANGE', queue, 0, math.min(rank, {_COUNTED}))) do
  if one ~= me then
    local until_ = tonumber(redis.call('HGET', about, one) or 0)
    if until_ + 60000 < now then
      redis.call('ZREM', queue, one)
      redis.call('HDEL', about, one)
    elseif until_ >= now then
      ahead = ahead + 1
    end
  end
end
if rank > {_COUNTED} then ahead = rank end
local free = most > 0 and most - redis.call('ZCARD', held) or ahead + 1
local next_ = math.max(now, tonumber(redis.call('HGET', about, 'tat') or 0))
local early = gap > 0 and next_ + ahead * gap - now or 0
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, lease + 3600000) end
if (mine or free > ahead) and early <= 0 then
  redis.call('ZREM', queue, me)
  redis.call('HDEL', about, me)
  redis.call('ZADD', held, now + lease, me)
  redis.call('HSET', about, 'token:' .. me, ARGV[7])
  redis.call('PEXPIRE', held, lease + 3600000)
  if gap > 0 then redis.call('HSET', about, 'tat', string.format('%.3f', next_ + gap)) end
  return {{1, redis.call('ZCARD', held), redis.call('ZCARD', queue), 0, tostring(number)}}
end
local again = early
if not mine and free <= ahead then
  local mean = tonumber(redis.call('HGET', about, 'mean') or 100)
  again = math.max(again, (ahead + 1 - free) / most * mean / 2)
end
again = math.min(math.max(again, tonumber(ARGV[5])), tonumber(ARGV[6]))
redis.call('HSET', about, me, now + again + 2000)
return {{0, redis.call('ZCARD', held), redis.call('ZCARD', queue), math.ceil(again), ''}}
"""
# One that gives up what it did not use keeps its number, and nobody waits for it until it asks.
_LEAVE: Final = f"""{_NOW}
local held, queue, about, me = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
if redis.call('HGET', about, 'token:' .. me) ~= ARGV[2] then return 0 end
redis.call('ZREM', held, me)
redis.call('HDEL', about, me, 'token:' .. me)
if ARGV[4] then
  redis.call('ZADD', queue, ARGV[4], me)
  redis.call('HSET', about, me, now - 1)
  local tat = redis.call('HGET', about, 'tat')
  local gap = tonumber(ARGV[5])
  if tat and gap > 0 then redis.call('HSET', about, 'tat', string.format('%.3f', tat - gap)) end
elseif ARGV[3] ~= '' then
  local mean = tonumber(redis.call('HGET', about, 'mean') or ARGV[3])
  redis.call('HSET', about, 'mean', mean * 0.8 + ARGV[3] * 0.2)
end
return 1
"""
