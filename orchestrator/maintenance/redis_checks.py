"""What evosaga needs of a Redis, looked at before it is relied on.

Used at the start, by ``doctor`` and by ``/readyz``. Nothing is written.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events import redis_errors
from evosaga.events.redis_clients import masters, prefix_of
from evosaga.events.slots import in_cluster
from evosaga.orchestrator.config.settings import SettingsError
from evosaga.orchestrator.maintenance import redis_rights, redis_topology
from evosaga.orchestrator.maintenance.redis_rights import NOTHING_MORE, RedisUse, Role
from evosaga.orchestrator.maintenance.redis_rights import rights as rights

_SHOWN: Final = 5

_FRESH: Final = 1.0


class RedisUnfit(SettingsError):
    """The Redis that was given can't be used: the operator has to change it, or the URL."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    ``fatal``: nothing may be started on such a Redis. ``harmless``: everything works all the same.
    """

    check: str
    said: str
    cure: str
    fatal: bool = True
    harmless: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis says of itself; ``info`` is None where it may not be asked.

    ``infos``: that of every master, of which a cluster has several.
    """

    faults: Sequence[Fault]
    info: dict[str, Any] | None
    infos: Sequence[dict[str, Any]] = ()


async def require(redis: Redis, role: Role = "worker", use: RedisUse = NOTHING_MORE) -> None:
    """Raise ``RedisUnfit`` with the first reason not to start. Raises what Redis raises."""
    for fault in (await look(redis, role, use)).faults:
        if fault.fatal:
            raise RedisUnfit(_sentence(fault))


def _sentence(fault: Fault) -> str:
    return f"Redis can't be used, {fault.said}: {fault.cure}"


_REPLICA: Final = Fault(
    "role",
    "it is a replica and takes no writes",
    "wait for the failover to end, or set EVOSAGA_REDIS_URL to the master",
    fatal=False,  # it may be promoted at any moment, so trying again may help
)


async def look(redis: Redis, role: Role = "worker", use: RedisUse = NOTHING_MORE) -> Known:
    """Everything that is wrong, the worst first. Raises what Redis raises while it is away."""
    if in_cluster(redis):
        return await _look_at_cluster(redis, role, use)
    mode, role_there = await redis_topology.mode_and_role(redis)
    if mode not in ("sentinel", "cluster"):
        known, elsewhere = await _look_at_one(redis, role, use, role_there)
        if not elsewhere:
            return known
        mode = "cluster"  # HELLO is forbidden, and it said so otherwise
    return Known([Fault("mode", *await redis_topology.other_kind(redis, mode))], None)


async def _look_at_cluster(redis: Redis, role: Role, use: RedisUse) -> Known:
    """The same of every master: each has an access list and settings of its own."""
    faults: list[Fault] = []
    infos: list[dict[str, Any]] = []
    trouble: RedisError | None = None
    answered: Redis | None = None
    for master in await masters(redis):
        try:
            known, _ = await _look_at_one(master, role, use, "")
        except (RedisConnectionError, RedisTimeoutError) as error:
            trouble = error
            continue
        faults += known.faults
        infos += known.infos
        answered = master
    if answered is None:
        raise trouble or RedisConnectionError("no node of the cluster answers")
    if (said := await redis_topology.unserved(answered)) is not None:
        faults.insert(0, Fault("cluster", *said, fatal=False))
    elif trouble is not None:
        cure = "wait for its failover, or start it again"
        faults.insert(0, Fault("cluster", "a master does not answer", cure, fatal=False))
    return Known(list(dict.fromkeys(faults)), infos[0] if infos else None, infos)


async def _look_at_one(
    redis: Redis, role: Role, use: RedisUse, role_there: str
) -> tuple[Known, bool]:
    """What is wrong with one server, and whether it sends us to another node of a cluster."""
    refused = await redis_rights.refused(redis, role, use)
    named = list(dict.fromkeys(name for name in refused if name))
    faults = [_REPLICA] if role_there in ("replica", "slave") else []
    faults += [_forbidden(named, rights(use, prefix_of(redis)))] if named else []
    info = await _info(redis)
    if info is None:
        said = "its access list forbids INFO, so version, eviction and persistence are not known"
        cure = "allow it if you can: ACL SETUSER … +info; nothing else needs it"
        faults.append(Fault("info", said, cure, fatal=False, harmless=True))
    elif (policy := str(info.get("maxmemory_policy", ""))).startswith("allkeys"):
        said, cure = f"maxmemory-policy is {policy}", "set maxmemory-policy to noeviction"
        faults.append(Fault("eviction", said, f"streams could be evicted: {cure}"))
    return Known(faults, info, [info] if info is not None else []), None in refused


def _forbidden(named: Sequence[str], needed: str) -> Fault:
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    said = f"its access list forbids {', '.join(named[:_SHOWN])}{more}"
    return Fault("rights", said, f"give its user what it needs: ACL SETUSER … {needed}")


async def _info(redis: Redis) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = await redis.info()
    except ResponseError:
        return None
    return found


_told: Final[WeakKeyDictionary[Redis, tuple[Role, float, str | None]]] = WeakKeyDictionary()


async def trouble_of(redis: Redis, role: Role, use: RedisUse = NOTHING_MORE) -> str | None:
    """The first reason not to rely on it, in a sentence; None when all is well.

    Asked anew after a second: readiness is open to strangers. Raises what Redis raises while it
    is away.
    """
    known = _told.get(redis)
    if known is not None and known[0] == role and time.monotonic() - known[1] < _FRESH:
        return known[2]
    said = await _trouble_of(redis, role, use)
    _told[redis] = (role, time.monotonic(), said)
    return said


async def _trouble_of(redis: Redis, role: Role, use: RedisUse) -> str | None:
    try:
        for fault in (await look(redis, role, use)).faults:
            if not fault.harmless:
                return _sentence(fault)
    except RedisError as error:
        if wrong := redis_errors.misconfigured(error):
            return f"Redis can't be used, {wrong}"
        raise
    return None
