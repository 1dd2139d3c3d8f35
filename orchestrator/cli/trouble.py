"""Exit codes, and trouble that can be expected: one sentence that names the cure."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

DONE: Final = 0
UNFINISHED: Final = 1
"""The saga did not complete, a part of a worker broke, or `doctor` found something bad."""
WRONG: Final = 2
"""Usage, input or settings: trying again without a change will not help."""
UNREACHABLE: Final = 3
"""A server can't be reached: trying again later may help."""
BUG: Final = 70
INTERRUPTED: Final = 130


class Trouble(Exception):
    """Something an operator or a caller can put right, in one sentence, with an exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


def explained(error: BaseException) -> Trouble | None:
    """The trouble behind an exception, None when it can only be a bug of ours."""
    import asyncpg
    from redis import exceptions as redis

    from events.commands import BadCommand
    from orchestrator.config import SettingsError
    from orchestrator.local.binaries import LocalServerUnavailable
    from orchestrator.queries import Unreadable

    match error:
        case SettingsError() | BadCommand() | Unreadable():
            return Trouble(WRONG, str(error))
        case LocalServerUnavailable():
            return Trouble(UNREACHABLE, str(error))
        case (
            asyncpg.UndefinedTableError()
            | asyncpg.UndefinedColumnError()
            | asyncpg.InvalidSchemaNameError()
        ):
            return Trouble(WRONG, "the database has no (or an old) schema: run `evosaga migrate`")
        case asyncpg.PostgresError() | asyncpg.InterfaceError():
            return _postgres(error, "")
        case redis.RedisError():
            return _redis(error, "")
        case TimeoutError() | ConnectionError():
            return Trouble(UNREACHABLE, f"a server stopped answering ({type(error).__name__})")
    return None


@contextmanager
def reaching_postgres(url: str) -> Iterator[None]:
    """Say which Postgres it was that could not be reached, or did not let us in."""
    import asyncpg

    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        trouble = _postgres(error, f" at {place(url)}")
        if trouble is None:
            raise
        raise trouble from error


@contextmanager
def reaching_redis(url: str) -> Iterator[None]:
    """Say which Redis it was that could not be reached, or did not let us in."""
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError, ValueError) as error:
        raise _redis(error, f" at {place(url)}") from error


def place(url: str) -> str:
    """Where a URL leads, without the user, the password or anything else that may be secret."""
    try:
        parts = urlsplit(url)
        socket = parse_qs(parts.query).get("host", [""])[0]
        host = parts.hostname or socket
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the given address"
    return f"{host}{port}{parts.path}" if parts.scheme != "unix" else parts.path


def _postgres(error: BaseException, where: str) -> Trouble | None:
    import asyncpg

    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():  # a wrong password among them
            said = f"Postgres{where} does not let this user in: check EVOSAGA_DATABASE_URL"
            return Trouble(WRONG, said)
        case asyncpg.InvalidCatalogNameError():
            said = f"Postgres{where} has no such database: check EVOSAGA_DATABASE_URL"
            return Trouble(WRONG, said)
        case asyncpg.ClientConfigurationError() | ValueError():
            return Trouble(WRONG, "EVOSAGA_DATABASE_URL can't be understood: is its port a number?")
        case asyncpg.InsufficientPrivilegeError():
            return Trouble(WRONG, f"Postgres{where} refuses: {error}")
    from events.database import TRANSIENT

    if isinstance(error, TRANSIENT):
        said = f"Postgres{where} can't be reached ({_kind(error)})"
        return Trouble(UNREACHABLE, f"{said}: is it running, and is EVOSAGA_DATABASE_URL right?")
    return None


def _redis(error: BaseException, where: str) -> Trouble:
    from redis.exceptions import AuthenticationError, ResponseError

    from events.redis_errors import misconfigured

    if isinstance(error, AuthenticationError):
        return Trouble(WRONG, f"Redis{where} does not let us in: check EVOSAGA_REDIS_URL")
    if wrong := misconfigured(error):
        return Trouble(WRONG, f"Redis{where} can't be used, {wrong}")
    match error:
        case ResponseError():
            return Trouble(UNREACHABLE, f"Redis{where} refuses: {error}")
        case ValueError():
            return Trouble(WRONG, "EVOSAGA_REDIS_URL can't be understood: is its port a number?")
    said = f"Redis{where} can't be reached ({_kind(error)})"
    return Trouble(UNREACHABLE, f"{said}: is it running, and is EVOSAGA_REDIS_URL right?")


def _kind(error: BaseException) -> str:
    """In a word or two; texts of drivers may carry addresses and more."""
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case FileNotFoundError():
            return "no such socket"
        case TimeoutError():
            return "no answer in time"
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError):
        return _kind(cause)
    return type(error).__name__
