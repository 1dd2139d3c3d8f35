"""Connects to the host that takes writes, where a URL names several.

asyncpg tries several hosts within one deadline, so a first host that answers nothing uses all of it
up, and it gives up at the first host that is there and refuses. Here each host has a deadline of
its own, and any of them may fail. The host that worked last is tried first.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from evosaga.events.postgres_url import hosts_of, place_of

_EACH: Final = 3.0
"""Seconds that one of several hosts gets."""
_PASSING: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
"""What says that this host can't be used now; whatever else is raised is a mistake in the URL."""
_worked: dict[str, str] = {}
"""The host that worked last, by URL; a URL of one host only."""


class NoWritableHost(asyncpg.TargetServerAttributeNotMatched):
    """None of the hosts takes writes: those that answer are standbys, or read-only."""


async def connect(
    url: str, *, timeout: float = 60.0, **options: Any
) -> "asyncpg.Connection[asyncpg.Record]":
    """As ``asyncpg.connect``. Of several hosts it is the first that takes writes.

    Raises ``NoWritableHost`` where one answers, and none takes writes; else what the last raised.
    """
    hosts = hosts_of(url)
    if len(hosts) == 1:
        return await _connect(url, timeout, options)
    failed: Exception | None = None
    refused: asyncpg.TargetServerAttributeNotMatched | None = None
    for host in sorted(hosts, key=lambda one: one != _worked.get(url)):
        try:
            connection = await _connect(host, min(timeout, _EACH), options)
        except asyncpg.TargetServerAttributeNotMatched as error:
            refused = error
        except _PASSING as error:
            failed = error
        else:
            _worked[url] = host
            return connection
    if refused is not None:
        places = ", ".join(place_of(host) for host in hosts)
        raise NoWritableHost(f"none of {places} takes writes") from refused
    assert failed is not None
    raise failed


async def _connect(
    url: str, timeout: float, options: Mapping[str, Any]
) -> "asyncpg.Connection[asyncpg.Record]":
    connection: asyncpg.Connection[asyncpg.Record]
    connection = await asyncpg.connect(url, timeout=timeout, **options)
    return connection


def host_of(url: str) -> str:
    """Where the last connection went, without a user or a password."""
    return place_of(_worked.get(url, url))


async def reachable(url: str) -> dict[str, tuple[str, datetime | None]]:
    """How each host of the URL is: ``primary``, ``standby``, ``read-only``, or why not at all.

    And since when it runs, to the microsecond: two names of one server say the same. None: unknown.
    """
    from evosaga.events.connection_errors import reason

    async def look(host: str) -> tuple[str, datetime | None]:
        try:
            connection = await asyncpg.connect(
                host,
                timeout=_EACH,
                statement_cache_size=0,
                target_session_attrs=SessionAttribute.any,
            )
        except (asyncpg.PostgresError, *_PASSING) as error:
            return reason(error), None
        try:
            row = await connection.fetchrow(_HOW, timeout=_EACH)
            assert row is not None
            try:
                started = await connection.fetchval(_STARTED, timeout=_EACH)
            except asyncpg.PostgresError:
                started = None  # a service that forbids it
            return str(row["how"]), started
        finally:
            connection.terminate()

    hosts = hosts_of(url)
    found = await asyncio.gather(*map(look, hosts))
    return dict(zip(map(place_of, hosts), found, strict=True))


_STARTED: Final = "SELECT pg_postmaster_start_time()"
_HOW: Final = """
SELECT CASE WHEN pg_is_in_recovery() THEN 'standby'
            WHEN current_setting('default_transaction_read_only') = 'on' THEN 'read-only'
            ELSE 'primary' END AS how
"""
