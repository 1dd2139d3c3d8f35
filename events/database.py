"""Connections to Postgres, direct or through a pooler in transaction mode."""

from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from evosaga.events import urls
from evosaga.events.postgres_hosts import connect

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Queryable: TypeAlias = (
    "asyncpg.Pool[asyncpg.Record] | asyncpg.Connection[asyncpg.Record] "
    "| PoolConnectionProxy[asyncpg.Record]"
)
"""Anything with asyncpg's query methods."""

_CONNECT_TIMEOUT: Final = 10.0
_COMMAND_TIMEOUT: Final = 20.0
"""Seconds. asyncpg has no deadline of its own, so a half-open socket would hang for ever."""

_SERVER_SETTINGS: Final = {
    "application_name": "evosaga",
    # A worker that is suspended inside a transaction must not block the others for long.
    "idle_in_transaction_session_timeout": "5000",
    "lock_timeout": "10000",
}

_READ_ONLY: Final = ("in_hot_standby", "default_transaction_read_only")
"""What Postgres reports of itself, from 14 on."""

TRANSIENT: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    OSError,
    TimeoutError,
)
"""Transient errors: restarts, failovers, full disks, deadlocks, lost connections."""


class StatementMode(Exception):
    """The pooler in front of Postgres runs in statement mode; the operator must change it.

    Transactions are impossible there.
    """


async def behind_pooler(url: str) -> bool:
    """Whether a pooler such as PgBouncer is in front of Postgres. Raises ``StatementMode``.

    A pooler reports a process id of its own, which differs from that of the backend.
    """
    connection = await connect(url, statement_cache_size=0, timeout=_CONNECT_TIMEOUT)
    try:
        backend = await connection.fetchval("SELECT pg_backend_pid()", timeout=_COMMAND_TIMEOUT)
        pooled = bool(connection.get_server_pid() != backend)
        if pooled:
            await _require_transactions(connection)
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT)
    return pooled


async def _require_transactions(connection: Connection) -> None:
    """Begin a transaction; PgBouncer in statement mode closes the connection at that."""
    try:
        await connection.execute("BEGIN", timeout=_COMMAND_TIMEOUT)
        await connection.execute("ROLLBACK", timeout=_COMMAND_TIMEOUT)
    except asyncpg.PostgresError as error:
        if "statement pooling" not in str(error):
            raise
        raise StatementMode(
            "the pooler in front of Postgres is in statement mode, which has no transactions: set "
            "pool_mode = transaction (or session) there, or let EVOSAGA_DATABASE_URL lead to "
            "Postgres itself"
        ) from error


async def open_pool(url: str, *, size: int = 8, reads_only: bool = False) -> Pool:
    """A pool of at most ``size`` connections. ``reads_only``: a standby will do.

    In transaction mode prepared statements and session settings would end up in another client's
    session, so behind a pooler neither is used.
    """
    pooled = await behind_pooler(url)
    pool: Pool = await asyncpg.create_pool(
        url,
        connect=cast(Any, connect),  # whose type leaves out what it hands on
        min_size=0,
        max_size=size,
        timeout=_CONNECT_TIMEOUT,
        command_timeout=_COMMAND_TIMEOUT,
        statement_cache_size=0 if pooled else 256,
        server_settings={} if pooled else _settings(url),
        reset=_reset_reader if reads_only else _reset,
    )
    return pool


def _settings(url: str) -> dict[str, str]:
    """The session settings; those in the URL take precedence."""
    said = dict(parse_qsl(urls.split(url).query))
    return {name: value for name, value in _SERVER_SETTINGS.items() if name not in said}


async def _reset_reader(connection: Connection) -> None:
    """As below, for a connection that need not write."""
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


async def _reset(connection: Connection) -> None:
    """Reset before the next user: nothing to do, since no code sets session state.

    asyncpg would send a RESET ALL and more at each release, a round trip for every commit. A server
    reports by itself when it takes no writes (any more); the next user gets a new connection then,
    to a server that does.
    """
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")
    said = connection.get_settings()
    if "on" in (getattr(said, name, "off") for name in _READ_ONLY):
        connection.terminate()
