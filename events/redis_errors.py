"""Classifies errors of Redis: transient, a configuration error, or not the master.

redis-py removes the first word of an error's text when it has a class for the error.
"""

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_PASSING: Final = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_PASSING_WORDS: Final = (
    "NOREPLICAS",
    "MISCONF",
    "BUSY",
    "OOM",
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "UNBLOCKED",
    "CLUSTERDOWN",
    "TRYAGAIN",
)
_ELSEWHERE: Final = (ReadOnlyError, BusyLoadingError, MasterDownError)
_ELSEWHERE_WORDS: Final = ("READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED")
# MOVED is an AskError. A client of a cluster follows both, so whoever gets one is none.
_CLUSTER: Final = (AskError, ClusterCrossSlotError)
CLUSTER: Final = (
    "it is a node of a Redis Cluster: let EVOSAGA_REDIS_URL begin with redis+cluster:// "
    "(rediss+cluster:// with TLS)"
)
"""The message about a cluster, with its cure."""

_COMMAND: Final = re.compile(r"run the '([a-z|]+)' command")
_CHANNEL: Final = re.compile(r"a channel|the '[^']*' channel")
_KEY: Final = re.compile(r"a key|the '[^']*' key")
_UNKNOWN: Final = re.compile(r"^unknown command '?`?([A-Za-z]+)", re.IGNORECASE)


def passing(error: BaseException) -> bool:
    """Whether the error is transient: Redis is down, starting, full or a replica just now."""
    if misconfigured(error) is not None:
        return False
    return isinstance(error, _PASSING) or str(error).startswith(_PASSING_WORDS)


def elsewhere(error: BaseException) -> bool:
    """Whether this server is not the master (any more, or yet), so a new connection may help.

    A server that is demoted in place keeps its connections; behind a service's address or a proxy
    only a new connection leads to the master.
    """
    return isinstance(error, _ELSEWHERE) or str(error).startswith(_ELSEWHERE_WORDS)


def misconfigured(error: BaseException) -> str | None:
    """A clause for the operator that names what is forbidden or wrong and the cure.

    None for every other error. It contains no value, key, user or address.
    """
    match error:
        case NoPermissionError():
            return _forbidden(str(error))
        case ClusterDownError():
            return None
        case AuthenticationError() | AuthorizationError():
            return "it does not know the user or the password that EVOSAGA_REDIS_URL gives"
        case ResponseError() if isinstance(error, _CLUSTER):
            return CLUSTER
    text = str(error)
    if isinstance(error, ResponseError) and "ACL failure in script" in text:
        return _forbidden(text)
    if isinstance(error, ResponseError) and (unknown := _UNKNOWN.match(text)):
        named = unknown[1].upper()
        if named != "COMMAND":
            return f"it does not have the command {named}: evosaga needs Redis 7.0 or Valkey, whole"
        return "it does not have a command that evosaga calls in a script"
    if isinstance(error, ResponseError) and text.startswith(("DB index", "SELECT is not allowed")):
        return "it has no database of that number: check the end of EVOSAGA_REDIS_URL"
    return None


def cause(error: BaseException) -> str:
    """The error for a log line: its class, and the cure when the operator must act."""
    wrong = misconfigured(error)
    return type(error).__name__ if wrong is None else f"{type(error).__name__}: {wrong}"


def _forbidden(text: str) -> str:
    if command := _COMMAND.search(text):
        what = f"the command {command[1].replace('|', ' ').upper()}"
    elif _CHANNEL.search(text):
        what = "a channel that evosaga publishes on"
    elif _KEY.search(text):
        what = "a key that evosaga uses"
    else:
        what = "a command, key or channel that evosaga uses"
    return f"its access list forbids {what}: allow the user of EVOSAGA_REDIS_URL what evosaga needs"
