"""Routing keys in Redis: webhook workers route with them, without a query.

Three keys belong to an instance's name. ``whatsapp:instance:…`` is what workers read. Beside it
``evosaga:filled:…`` says which integration it was filled for, from which version of its row, and
what exactly was written, so that a reader tells what we wrote from what others put there.
``evosaga:removed:…`` is the mark that a removal leaves: it names the integration, and a
process that fills the key for that integration late is refused. Beside ``evosaga:qr:…`` there
are the time of the code and the same mark. In a cluster, what is beside a key is in its hash slot
(``evosaga.events.slots``).
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from uuid import UUID

from redis.exceptions import RedisError

from evosaga.events import redis_errors
from evosaga.events.connection_errors import reason
from evosaga.events.slots import beside, in_cluster
from evosaga.sagas.outcome import Done, Finding, Held, Outcome, Rejected, Sighting, Unknown

if TYPE_CHECKING:  # routing workers read the key with this module, and need nothing else of ours
    from redis.asyncio import Redis

    from evosaga.sagas.whatsapp.evolution.models import QrCode
    from evosaga.sagas.whatsapp.services import Context

MISCONFIGURED: Final = "redis_misconfigured"
"""An operator has to change Redis, or where we look for it; no attempt is burned meanwhile."""
TTL: Final = 3600
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode
_MARK_TTL: Final = 2 * TTL
QR_TTL: Final = 60

# The same name may have been several integrations' within two hours, so the mark is a list.
_IS_REMOVED: Final = """
local function is_removed(mark, id)
  return string.find(' ' .. (redis.call('GET', mark) or '') .. ' ', ' ' .. id .. ' ', 1, true)
end
"""
_FILL: Final = f"""{_IS_REMOVED}
if is_removed(KEYS[3], ARGV[1]) then return 'removed' end
local id, version = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+) ')
if id == ARGV[1] and tonumber(version) > tonumber(ARGV[2]) and redis.call('EXISTS', KEYS[1]) == 1
then return 'newer' end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[5])
redis.call('SET', KEYS[2], ARGV[4], 'EX', ARGV[5])
return 'filled'
"""
_KEEP_QR: Final = f"""{_IS_REMOVED}
if is_removed(KEYS[2], ARGV[1]) then return 0 end
local held = redis.call('GET', KEYS[3])
if held and ARGV[3] ~= '' and held > ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[4])
if ARGV[3] ~= '' then redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4]) end
return 1
"""
_REMOVE: Final = """
redis.call('DEL', unpack(KEYS, 2))
local marks = redis.pcall('GET', KEYS[1])
if type(marks) ~= 'string' then marks = '' end
if not string.find(' ' .. marks .. ' ', ' ' .. ARGV[1] .. ' ', 1, true) then
  marks = (marks == '' and '' or string.sub(marks, -370) .. ' ') .. ARGV[1]
end
redis.call('SET', KEYS[1], marks, 'EX', ARGV[2])
"""
_FORGET: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1], KEYS[2]) end
return 0
"""


@dataclass(frozen=True, slots=True)
class Route:
    """Where an instance's messages belong, as the integration's row said at ``version``.

    ``version`` is the row's ``updated_at`` in microseconds; 0 while the row is being made.
    """

    integration_id: UUID
    instance_name: str
    organization_id: str
    clinic_id: str | None
    name: str
    whatsapp_number: str | None = None
    version: int = 0

    def value(self) -> str:
        """What is under the routing key."""
        told = {
            "clinic_id": self.clinic_id,
            "organization_id": self.organization_id,
            "name": self.name,
            "whatsapp_number": self.whatsapp_number,
        }
        return _encode(told)


def key(instance_name: str) -> str:
    """The routing key of an instance."""
    return f"whatsapp:instance:{instance_name}"


def filled_key(instance_name: str, redis: "Redis | None" = None) -> str:
    """The key that records what we wrote under the routing key. None: on a single Redis."""
    plain = f"evosaga:filled:{instance_name}"
    if redis is None:
        return plain
    return beside(redis, key(instance_name), plain, "evosaga:filled")


def qr_key(instance_name: str) -> str:
    """Where the current QR code is, for a minute."""
    return f"evosaga:qr:{instance_name}"


def qr_limit_key(instance_name: str) -> str:
    """There while Evolution shows no more QR codes until pairing is asked for again."""
    return f"evosaga:qr-limit:{instance_name}"


async def put(redis: "Redis", route: Route) -> Literal["filled", "newer", "removed"]:
    """Set the routing key for an hour, unless the integration is removed or a newer row is there.

    Raises ``RedisError``.
    """
    value = route.value()
    seal = f"{route.integration_id} {route.version} {digest(value.encode())}"
    name = route.instance_name
    keys = (key(name), filled_key(name, redis), _mark(redis, name, key(name)))
    said = await _script(
        redis, _FILL, keys, str(route.integration_id), str(route.version), value, seal, str(TTL)
    )
    return cast(Literal["filled", "newer", "removed"], _text(said))


async def forget(redis: "Redis", instance_name: str, value: bytes) -> bool:
    """Drop the routing key if that is still its value. Raises ``RedisError``."""
    keys = (key(instance_name), filled_key(instance_name, redis))
    return bool(await _script(redis, _FORGET, keys, value))


async def keep_qr(
    redis: "Redis", instance_name: str, integration_id: str, code: "QrCode", at: str = ""
) -> bool:
    """Keep a QR code for a minute, unless the integration is gone or a later one is there.

    ``at`` is Evolution's time of it, where that is known. Raises ``RedisError``.
    """
    qr = qr_key(instance_name)
    keys = (qr, _mark(redis, instance_name, qr), _qr_time_key(redis, instance_name))
    arguments = (integration_id, json.dumps(code), at, str(QR_TTL))
    return bool(await _script(redis, _KEEP_QR, keys, *arguments))


async def fill(ctx: "Context") -> Outcome:
    """Set the routing key for an hour."""
    route = Route(
        integration_id=ctx.saga_id,
        instance_name=ctx.facts["instance_name"],
        organization_id=str(ctx.input.organization_id),
        clinic_id=str(ctx.input.clinic_id),
        name=ctx.input.name,
    )
    try:
        said = await put(ctx.services.redis, route)
    except RedisError as error:
        return trouble(error)
    if said == "removed":
        return Rejected("removed", "the integration was removed meanwhile")
    return Done()


async def invalidate(ctx: "Context") -> Outcome:
    """Drop the routing key and what is about the code, and leave the mark.

    One script on a single Redis; in a cluster one in each slot, and a mark in two of them.
    """
    name, redis = ctx.facts["instance_name"], ctx.services.redis
    of_route = [key(name), filled_key(name, redis)]
    dropped: dict[str, list[str]] = {_mark(redis, name, key(name)): of_route}
    of_code = [qr_key(name), _qr_time_key(redis, name)]
    limit = qr_limit_key(name)
    if not (apart := in_cluster(redis)):
        of_code.append(limit)
    dropped.setdefault(_mark(redis, name, qr_key(name)), []).extend(of_code)
    try:
        for mark, keys in dropped.items():
            left = (ctx.facts["created_by"], str(_MARK_TTL))
            await _script(redis, _REMOVE, (mark, *keys), *left)
        if apart:
            await redis.delete(limit)
    except RedisError as error:
        return trouble(error)
    return Done()


async def probe_filled(ctx: "Context") -> Finding:
    """Whether the routing key is there and is ours. Anything else under it is to be overwritten."""
    try:
        name = ctx.facts["instance_name"]
        redis = ctx.services.redis
        value, seal = await redis.mget(key(name), filled_key(name, redis))
    except RedisError as error:
        return Finding(Sighting.UNKNOWN, f"Redis can't be asked: {reason(error)}")
    if value is None:
        return Finding(Sighting.ABSENT, "the routing key is not there; it is kept for an hour")
    if seal is not None and _text(seal).split(" ")[0] == str(ctx.saga_id):
        return Finding(Sighting.THERE, "the routing key is there")
    return Finding(Sighting.ABSENT, "what is under the routing key is not this integration's")


async def probe_invalidated(ctx: "Context") -> Finding:
    """Whether the routing key is gone."""
    try:
        there = await ctx.services.redis.exists(key(ctx.facts["instance_name"]))
    except RedisError as error:
        return Finding(Sighting.UNKNOWN, f"Redis can't be asked: {reason(error)}")
    if there:
        return Finding(Sighting.ABSENT, "the routing key is still there, or there again")
    return Finding(Sighting.THERE, "the routing key is gone")


def trouble(error: RedisError) -> Held | Unknown:
    """A Redis that is down, refuses writes or forbids commands is waited for, without an attempt.

    What is left is about the one key: an attempt.
    """
    wrong = redis_errors.misconfigured(error)
    if wrong is not None:
        return Held(MISCONFIGURED, f"Redis refuses: {wrong}", in_doubt=True)
    name = reason(error)
    if redis_errors.passing(error):
        return Held("redis_unavailable", f"Redis is unavailable: {name}", in_doubt=True)
    # The first word is Redis's own name for the error; what follows may quote a value.
    code = _ERROR.match(str(error))
    return Unknown("redis_error", f"Redis answered with an error: {code[0] if code else name}")


_ERROR: Final = re.compile(r"[A-Z]{2,20}(?= )")


def digest(value: bytes) -> str:
    """What is noted of a value that we wrote."""
    return hashlib.sha256(value).hexdigest()[:32]


async def _script(
    redis: "Redis", script: str, keys: tuple[str, ...], *arguments: str | bytes
) -> Any:
    return await redis.eval(script, len(keys), *keys, *arguments)


def _mark(redis: "Redis", instance_name: str, of: str) -> str:
    """The mark of a removal that is looked at together with this key."""
    return beside(redis, of, f"evosaga:removed:{instance_name}", "evosaga:removed")


def _qr_time_key(redis: "Redis", instance_name: str) -> str:
    plain = f"evosaga:qr-time:{instance_name}"
    return beside(redis, qr_key(instance_name), plain, "evosaga:qr-time")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
