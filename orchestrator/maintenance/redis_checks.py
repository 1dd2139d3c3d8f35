"""What evosaga needs of a Redis, looked at before it is relied on.

Used at the start, by ``doctor`` and by ``/readyz``. Nothing is written: the commands are queued in
a transaction, where Redis checks what the user may do, and the transaction is discarded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from evosaga.events import redis_errors, relay_position, streams
from evosaga.events.key_prefix import prefixed
from evosaga.events.redis_clients import masters, prefix_of
from evosaga.events.slots import in_cluster
from evosaga.orchestrator.config.settings import SettingsError
from evosaga.orchestrator.maintenance import redis_topology
from evosaga.orchestrator.maintenance.redis_owner import OWNER

_OURS: Final = "~{}evosaga:*"
_SHOWN: Final = 5

_FRESH: Final = 1.0

Role: TypeAlias = Literal["worker", "api"]


RedisCommand: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RedisUse:
    """What a domain needs of Redis beyond what the engine does.

    ``names``: its keys and channels as an access list has them, ``{}`` for the prefix. ``always``
    and ``of_worker``: its commands, as every process sends them and as only workers do; an
    instance, tenant or the like that a key is named after is ``NOBODY``.
    """

    names: tuple[str, ...] = ()
    always: tuple[RedisCommand, ...] = ()
    of_worker: tuple[RedisCommand, ...] = ()


NOTHING_MORE: Final = RedisUse()
NOBODY: Final = "-"
"""Nothing has such a short name."""


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


def rights(use: RedisUse = NOTHING_MORE, prefix: str = "") -> str:
    """An access list's rules under which everything works."""
    names = (name.format(prefix) for name in (_OURS, *use.names))
    return " ".join([*names, "+@all", "-@dangerous"])


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
    refused = await _refused(redis, role, use)
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


async def _refused(redis: Redis, role: Role, use: RedisUse) -> list[str | None]:
    """What the user may not do, as ``XADD on evosaga:events``; None stands for a cluster's word."""
    connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    prefix, over = prefix_of(redis), False
    try:
        alone = [("PING",), ("TIME",), ("MULTI",), ("EXEC",), ("MULTI",)]
        if found := await _asked(connection, alone, prefix):
            return found  # without MULTI what follows would be done
        found = await _asked(connection, [*_needed(role, use), ("DISCARD",)], prefix)
        over = "DISCARD" not in found
        return found
    finally:
        if not over:
            await connection.disconnect()
        await redis.connection_pool.release(connection)


async def _asked(
    connection: Any, commands: Sequence[tuple[str, ...]], prefix: str
) -> list[str | None]:
    """What is refused of these, all sent in one go."""
    packed = connection.pack_commands([prefixed(prefix, command) for command in commands])
    await connection.send_packed_command(packed)
    found: list[str | None] = []
    for command in commands:
        try:
            await connection.read_response()
        except ResponseError as error:
            found += _refusal(command, error)
    return found


def _refusal(command: Sequence[str], error: ResponseError) -> list[str | None]:
    if isinstance(error, NoPermissionError):
        whole = "no permissions to run" in str(error)
        return [command[0] if whole else _named(command)]
    wrong = redis_errors.misconfigured(error)
    if wrong == redis_errors.CLUSTER:
        return [None]
    return [command[0]] if wrong else []  # READONLY and the like pass


def _named(command: Sequence[str]) -> str:
    """The command with the key or channel that it was tried on."""
    on = next((word for word in command[1:] if ":" in word), "")
    return f"{command[0]} on {on.replace(NOBODY, '*')}"


def _needed(role: Role, use: RedisUse) -> list[RedisCommand]:
    """Every command that we send or call in a script, on every key it is for."""
    if role != "worker":
        return [*use.always]
    texts = (relay_position.TOLD, relay_position.PROOF, OWNER)
    ours = [command for key in texts for command in text(key)]
    return [*use.always, *ours, *_of_a_worker(), *use.of_worker]


def _of_a_worker() -> list[tuple[str, ...]]:
    commands, group, events = streams.COMMANDS, streams.GROUP, streams.EVENTS
    dead = streams.DEAD_COMMANDS
    needed: list[tuple[str, ...]] = [
        ("EVAL", "return 1", "4", relay_position.TOLD, relay_position.PROOF, events, commands),
        ("EVAL", "return 1", "1", OWNER),
        ("XREADGROUP", "GROUP", group, "-", "BLOCK", "1", "STREAMS", commands, ">"),
        ("XAUTOCLAIM", commands, group, "-", "1000", "0-0"),
        ("XACK", commands, group, "0-0"),
        ("XPENDING", commands, group, "-", "+", "1"),
        ("XGROUP", "CREATE", commands, group, "0", "MKSTREAM"),
        ("XGROUP", "DELCONSUMER", commands, group, "-"),
        ("XINFO", "GROUPS", commands),
        ("XINFO", "CONSUMERS", commands, group),
        ("XINFO", "STREAM", events),
        ("XRANGE", events, "0-0", "0-0"),
        ("XREVRANGE", events, "+", "-", "COUNT", "1"),
        ("MEMORY", "USAGE", events),
        ("XDEL", dead, "0-0"),
    ]
    for stream in (commands, events, dead):
        needed += [("XADD", stream, "*", "data", ""), ("XLEN", stream)]
    for stream in (commands, events):
        needed += trimming(stream)
    return needed


def trimming(stream: str) -> list[RedisCommand]:
    """The commands that keep a stream short."""
    return [("XTRIM", stream, "MINID", "0"), ("XINFO", "GROUPS", stream)]


def text(key: str) -> list[RedisCommand]:
    """The commands on a key that holds a text for a while."""
    return [("GET", key), ("SET", key, "", "EX", "1"), ("EXISTS", key), ("PTTL", key)]


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
