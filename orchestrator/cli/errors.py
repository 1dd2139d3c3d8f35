"""Exit codes, and trouble that can be expected: one sentence that names the cure."""

from __future__ import annotations

import errno
import getpass
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from evosaga.events import urls

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


class CliError(Exception):
    """Something an operator or a caller can put right, in one sentence, with an exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


def explained(error: BaseException) -> CliError | None:
    """The trouble behind an exception, None when it can only be a bug of ours."""
    import asyncpg
    from redis import exceptions as redis

    from evosaga.events.commands import BadCommand
    from evosaga.events.database import StatementMode
    from evosaga.events.log_loss import LogWentBack
    from evosaga.orchestrator.config.settings import SettingsError
    from evosaga.orchestrator.local.binaries import LocalServerUnavailable
    from evosaga.orchestrator.local.paths import NoStateFolder
    from evosaga.orchestrator.queries.sagas import Unreadable

    match error:
        case SettingsError() | BadCommand() | Unreadable() | NoStateFolder() | StatementMode():
            return CliError(WRONG, str(error))
        case LogWentBack():
            return CliError(WRONG, str(error))
        case LocalServerUnavailable():
            return CliError(UNREACHABLE, str(error))
        case (
            asyncpg.UndefinedTableError()
            | asyncpg.UndefinedColumnError()
            | asyncpg.InvalidSchemaNameError()
        ):
            return CliError(WRONG, "the database has no (or an old) schema: run `evosaga migrate`")
        case (
            asyncpg.PostgresError()
            | asyncpg.InterfaceError()
            | asyncpg.TargetServerAttributeNotMatched()
        ):
            return _postgres(error, "")
        case redis.RedisError():
            return _redis(error, "")
        case TimeoutError() | ConnectionError():
            return CliError(UNREACHABLE, f"a server stopped answering ({_kind(error)})")
        case OSError():
            return _of_the_machine(error)
    return None


def _of_the_machine(error: OSError) -> CliError | None:
    """What the machine refuses: a full disk, a folder of another account, no more files."""
    if error.errno not in _REFUSALS:
        return None
    what = f"{error.filename!r} can't be used" if error.filename else "the machine refuses"
    return CliError(WRONG, f"{what}: {error.strerror or errno.errorcode[error.errno]}")


_REFUSALS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
    }
)


@contextmanager
def reaching_postgres(url: str) -> Iterator[None]:
    """Say which Postgres it was that could not be reached, or did not let us in."""
    import asyncpg

    _know_the_user(url)
    from evosaga.events.database import StatementMode

    try:
        yield
    except StatementMode as error:
        raise CliError(WRONG, str(error)) from error
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        ValueError,
    ) as error:
        trouble = _postgres(error, f" at {place(url)}")
        if trouble is None:
            raise
        raise trouble from error


def _know_the_user(url: str) -> None:
    """Who is to be let in; without a word in the URL it is the account's own name."""
    try:
        parts = urls.split(url)
        named = parts.username or parse_qs(parts.query).get("user") or os.environ.get("PGUSER")
    except ValueError:
        return  # which the driver says better
    if named or "service" in parse_qs(parts.query) or os.environ.get("PGSERVICE"):
        return
    try:
        getpass.getuser()
    except (KeyError, OSError):
        said = "EVOSAGA_DATABASE_URL names no user, and this account has no name that could be used"
        raise CliError(WRONG, f"{said}: postgresql://USER@…") from None


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
        parts = urls.split(url)
        from evosaga.events import redis_address  # not for the page of --help

        if parts.scheme in redis_address.SCHEMES:
            return redis_address.hosts(url)
        if "," in parts.netloc:
            return f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        socket = parse_qs(parts.query).get("host", [""])[0]
        host = parts.hostname or socket
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the given address"
    return f"{host}{port}{parts.path}" if parts.scheme != "unix" else parts.path


def _postgres(error: BaseException, where: str) -> CliError | None:
    import asyncpg

    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():  # a wrong password among them
            said = f"Postgres{where} does not let this user in: check EVOSAGA_DATABASE_URL"
            return CliError(WRONG, said)
        case asyncpg.InvalidCatalogNameError():
            said = f"Postgres{where} has no such database: check EVOSAGA_DATABASE_URL"
            return CliError(WRONG, said)
        case asyncpg.PostgresError() if name := _parameter(error):
            said = f"Postgres{where} does not take the parameter {name} of EVOSAGA_DATABASE_URL"
            return CliError(WRONG, f"{said}: take it out, or give it a value that it can have")
        case asyncpg.ReadOnlySQLTransactionError():
            said = f"Postgres{where} is read-only, a standby perhaps"
            return CliError(UNREACHABLE, f"{said}: let EVOSAGA_DATABASE_URL lead to the primary")
        case asyncpg.TargetServerAttributeNotMatched():
            return CliError(UNREACHABLE, _unmatched(error, where))
        case asyncpg.ClientConfigurationError() if "root certificate" in str(error):
            cure = "add sslrootcert=FILE to EVOSAGA_DATABASE_URL, or sslrootcert=system"
            return CliError(WRONG, f"there is no certificate to check Postgres{where} with: {cure}")
        case asyncpg.ClientConfigurationError() if "direct TLS" in str(error):
            said = "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"
            return CliError(WRONG, f"EVOSAGA_DATABASE_URL: {said}")
        case UnicodeError():
            return CliError(WRONG, "EVOSAGA_DATABASE_URL names a host that none can be called")
        case asyncpg.ClientConfigurationError() | ValueError():
            return CliError(
                WRONG, "EVOSAGA_DATABASE_URL can't be understood: is its port a number?"
            )
        case PermissionError() if error.filename:  # the driver looks for certificates at home
            said = f"{str(error.filename)!r} can't be looked at: {error.strerror}"
            return CliError(WRONG, f"{said}; set HOME to a folder of this account")
        case asyncpg.InsufficientPrivilegeError():
            return CliError(WRONG, f"Postgres{where} refuses: {error}")
        case asyncpg.QueryCanceledError() if "statement timeout" in str(error):
            said = f"Postgres{where} ends our statements before they are done"
            return CliError(
                WRONG, f"{said}: raise statement_timeout, in EVOSAGA_DATABASE_URL or there"
            )
        case ConnectionError() if "rejected SSL upgrade" in str(error):
            said = f"Postgres{where} speaks no TLS, which EVOSAGA_DATABASE_URL asks for"
            return CliError(WRONG, f"{said}: switch ssl on there, or say sslmode=prefer")
    from evosaga.events.database import TRANSIENT

    if isinstance(error, TRANSIENT):
        said = f"Postgres{where} can't be reached ({_kind(error)})"
        return CliError(UNREACHABLE, f"{said}: is it running, and is EVOSAGA_DATABASE_URL right?")
    return None


def _unmatched(error: BaseException, where: str) -> str:
    """Hosts are there, and none is what is needed."""
    from evosaga.events.postgres_hosts import NoWritableHost

    if isinstance(error, NoWritableHost):
        cure = "promote one of them, or let EVOSAGA_DATABASE_URL name the primary as well"
        return f"Postgres can't be written to, {error}: {cure}"
    said = f"Postgres{where} is not what target_session_attrs asks for"
    return f"{said}: is EVOSAGA_DATABASE_URL right?"


def _parameter(error: BaseException) -> str | None:
    """The name of a parameter that Postgres, or a pooler in front of it, does not take."""
    if "invalid command-line argument for server process" in str(error):
        return "options"
    if re.search(r'(?:permission denied to set )?role ".*"(?: does not exist)?$', str(error)):
        return "role" if getattr(error, "sqlstate", None) in ("22023", "42501") else None
    found = re.search(
        r"(?:unrecognized configuration parameter|unsupported startup parameter:?"
        r"|(?:invalid value for|permission denied to set) parameter"
        r"|parameter) \"?([A-Za-z0-9_.]+)\"?",
        str(error),
    )
    known = ("42704", "08P01", "22023", "55P02", "42501")
    return found[1] if found and getattr(error, "sqlstate", None) in known else None


def _redis(error: BaseException, where: str) -> CliError:
    from redis.exceptions import AuthenticationError, ResponseError

    from evosaga.events.redis_errors import misconfigured

    if isinstance(error, AuthenticationError):
        return CliError(WRONG, f"Redis{where} does not let us in: check EVOSAGA_REDIS_URL")
    if wrong := misconfigured(error):
        return CliError(WRONG, f"Redis{where} can't be used, {wrong}")
    match error:
        case ResponseError():
            return CliError(UNREACHABLE, f"Redis{where} refuses: {error}")
        case ValueError():
            return CliError(WRONG, "EVOSAGA_REDIS_URL can't be understood: is its port a number?")
    kind = _kind(error)
    if "certificate" in kind:
        said = f"Redis{where} can't be trusted ({kind})"
        return CliError(WRONG, f"{said}: add ssl_ca_certs=FILE to EVOSAGA_REDIS_URL")
    said = f"Redis{where} can't be reached ({kind})"
    return CliError(UNREACHABLE, f"{said}: is it running, and is EVOSAGA_REDIS_URL right?")


def _kind(error: BaseException) -> str:
    """In a word or two; texts of drivers may carry addresses and more."""
    from evosaga.events.connection_errors import reason

    return reason(error)
