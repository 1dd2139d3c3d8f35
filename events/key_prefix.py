"""A prefix before every name in Redis, so that several databases can share one server.

It is added where commands leave the client, so no other module knows of it. An unknown command is
refused, since it could be sent with another application's key.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.asyncio.client import Pipeline

_FIRST: Final = frozenset(
    {
        *("GET", "SET", "TTL", "PTTL", "PUBLISH", "MEMORY USAGE"),
        *("XADD", "XLEN", "XRANGE", "XREVRANGE", "XDEL", "XTRIM"),
        *("XACK", "XPENDING", "XCLAIM", "XAUTOCLAIM"),
        *("XGROUP CREATE", "XGROUP DELCONSUMER"),
        *("XINFO GROUPS", "XINFO STREAM", "XINFO CONSUMERS"),
    }
)
"""Commands whose first argument is their only key."""
_ALL: Final = frozenset({"DEL", "EXISTS", "MGET"})
_NONE: Final = frozenset(
    {"PING", "TIME", "HELLO", "INFO", "MULTI", "EXEC", "DISCARD", "ASKING", "CLUSTER INFO"}
)


def prefixed(prefix: str, command: Sequence[Any]) -> tuple[Any, ...]:
    """The command with the prefix before each of its keys. Raises ``ValueError``."""
    if not prefix or command[0] in _NONE:
        return tuple(command)
    words = list(command)
    for place in _places(words):
        words[place] = _before(prefix, words[place])
    return tuple(words)


def keys_of(command: Sequence[Any]) -> list[Any]:
    """The keys, streams and channels of a command. Raises ``ValueError``."""
    return [] if command[0] in _NONE else [command[place] for place in _places(command)]


def _places(words: Sequence[Any]) -> Iterable[int]:
    """Where a command has its keys. Raises ``ValueError``."""
    name = words[0]
    if name in ("XGROUP", "XINFO", "MEMORY"):
        return [2]
    if name in _FIRST:
        return [1]
    if name in _ALL:
        return range(1, len(words))
    if name == "EVAL":
        return range(3, 3 + int(words[2]))
    if name in ("XREADGROUP", "XREAD"):
        first = _after("STREAMS", words)
        return range(first, first + (len(words) - first) // 2)
    if name == "SCAN":
        return [_after("MATCH", words)]
    raise ValueError(f"where {name} has its keys is not known, so none can have a prefix")


def stripped(prefix: str, name: Any) -> Any:
    """A name from Redis without the prefix."""
    return name.removeprefix(prefix.encode() if isinstance(name, bytes) else prefix)


def _after(option: str, words: Sequence[Any]) -> int:
    """The index after an option, which redis-py gives as bytes. Raises ``ValueError``."""
    plain = [word.decode() if isinstance(word, bytes) else word for word in words]
    return plain.index(option) + 1


def _before(prefix: str, name: Any) -> Any:
    return prefix.encode() + name if isinstance(name, bytes) else prefix + name


class PrefixedPipeline(Pipeline):
    """A pipeline that adds the prefix to its commands."""

    prefix = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Queue it, or send it at once. Raises what ``prefixed`` raises."""
        return super().execute_command(*prefixed(self.prefix, args), **options)
