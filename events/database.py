"""Connections to Postgres, direct or through a pooler in transaction mode."""

from typing import Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Queryable: TypeAlias = (
    "asyncpg.Pool[asyncpg.Record] | asyncpg.Connection[asyncpg.Record] "
    "| PoolConnectionProxy[asyncpg.Record]"
)
"""Whatever a read can be sent to."""

_CONNECT_TIMEOUT: Final = 10.0
_COMMAND_TIMEOUT: Final = 20.0
"""asyncpg has no deadline of its own, so a half-open socket would hang for ever. Seconds."""

_SERVER_SETTINGS: Final = {
    "application_name": "evosaga",
    # A worker that is stopped in the middle of a transaction must not block the others for long.
    "idle_in_transaction_session_timeout": "5000",
    "lock_timeout": "10000",
}

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
"""What passes when Postgres is well again: restarts, failovers, full disks, deadlocks, cuts."""


async def behind_pooler(url: str) -> bool:
    """Whether something like PgBouncer stands in front of Postgres.

    A pooler hands out a process id of its own, which differs from that of the backend.
    """
    connection = await asyncpg.connect(url, statement_cache_size=0, timeout=_CONNECT_TIMEOUT)
    try:
        backend = await connection.fetchval("SELECT pg_backend_pid()", timeout=_COMMAND_TIMEOUT)
        return bool(connection.get_server_pid() != backend)
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT)


async def open_pool(url: str, *, size: int = 8) -> Pool:
    """A pool of at most ``size`` connections.

    In transaction mode prepared statements and session settings would end up in somebody
    else's session, so behind a pooler both are left out.
    """
    pooled = await behind_pooler(url)
    pool: Pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        timeout=_CONNECT_TIMEOUT,
        command_timeout=_COMMAND_TIMEOUT,
        statement_cache_size=0 if pooled else 256,
        server_settings={} if pooled else _SERVER_SETTINGS,
        reset=_reset,
    )
    return pool


async def _reset(connection: Connection) -> None:
    """What a connection needs before the next user: nothing, since nobody sets session state.

    asyncpg would send a RESET ALL and more at each release, a round trip for every commit.
    """
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")
