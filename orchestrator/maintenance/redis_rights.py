"""What evosaga may do on a Redis, asked without doing any of it.

The commands are queued in a transaction, where Redis checks what the user may do, and the
transaction is discarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from evosaga.events import redis_errors, relay_position, streams
from evosaga.events.key_prefix import prefixed
from evosaga.events.redis_clients import prefix_of
from evosaga.orchestrator.maintenance.redis_owner import OWNER

_OURS: Final = "~{}evosaga:*"

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


def rights(use: RedisUse = NOTHING_MORE, prefix: str = "") -> str:
    """An access list's rules under which everything works."""
    names = (name.format(prefix) for name in (_OURS, *use.names))
    return " ".join([*names, "+@all", "-@dangerous"])


async def refused(redis: Redis, role: Role, use: RedisUse) -> list[str | None]:
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
