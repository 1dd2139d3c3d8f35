"""What ``doctor`` says of several Postgres hosts, of standbys, and of a log that went back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli.check import Finding

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings

_BEHIND_BYTES: Final = 64 * 1024**2
_BEHIND_SECONDS: Final = 30.0
"""A standby that is further behind than one of these would take over with much missing."""
_A_MOMENT: Final = 1.0
"""Seconds in which a standby has what was written when it was first looked at."""
_WAITS: Final = ("on", "remote_write", "remote_apply")


async def check_hosts(url: str) -> AsyncGenerator[Finding, None]:
    """Which of several hosts it is, and how the others are; nothing where there is one."""
    from evosaga.events.postgres_hosts import host_of, reachable
    from evosaga.events.postgres_url import hosts_of

    if len(hosts_of(url)) == 1:
        return
    here, found = host_of(url), await reachable(url)
    started = {place: since for place, (_, since) in found.items()}
    how = {
        # It may have two names, or an address of its own beside that of its service.
        place: "the same server" if started[place] and started[place] == started.get(here) else one
        for place, (one, _) in found.items()
    }
    others = [f"{place} is {state}" for place, state in how.items() if place != here]
    said = f"on {here}, which takes writes; {', '.join(others)}"
    fine = ("primary", "standby", "the same server")
    away = [p for p, state in how.items() if state not in fine and p != here]
    known = [p for p, since in started.items() if since and started.get(here)]
    twins = [p for p in known if how[p] == "primary" and p != here]
    if twins:
        cure = f"stop one of them at once: what is written to {twins[0]} is not seen here"
        yield Finding("hosts", "bad", f"{said}: two primaries", cure)
    elif away:
        cure = f"after a failover there is nothing to go to: look at {', '.join(away)}"
        yield Finding("hosts", "warn", said, cure)
    else:
        yield Finding("hosts", "ok", said)


async def check_copies(pool: Pool, settings: Settings) -> AsyncGenerator[Finding, None]:
    """The standbys, and the one that lists are read from."""
    async for finding in check_standbys(pool):
        yield finding
    async for finding in check_replica(settings, pool):
        yield finding


async def check_standbys(pool: Pool) -> AsyncGenerator[Finding, None]:
    """What a promotion could lose; nothing where no standby is, or where it can't be seen."""
    import asyncpg

    try:
        rows = await pool.fetch(_STANDBYS)
        settings = await pool.fetchrow(_SETTINGS)
    except asyncpg.PostgresError:
        return  # a service that hides its replication
    assert settings is not None
    names, commit = settings["names"], settings["commit"]
    if names and not any(row["sync"] in ("sync", "quorum") for row in rows):
        said = f"synchronous_standby_names is {names!r} and no such standby is connected"
        cure = "every commit waits: start it, or ALTER SYSTEM RESET synchronous_standby_names"
        yield Finding("replication", "warn" if commit not in _WAITS else "bad", said, cure)
    for row in rows:
        yield _standby(row, commit)


def _standby(row: Any, commit: str) -> Finding:
    behind = f"{row['bytes'] / 1024:.0f} kB, {row['seconds']:.1f} s behind"
    name = f"standby {row['name']}"
    late = row["bytes"] > _BEHIND_BYTES or row["seconds"] > _BEHIND_SECONDS
    if row["sync"] in ("sync", "quorum") and commit in _WAITS:
        cure = "look at its disk and its network: it holds up every commit" if late else ""
        said = f"{name} replicates synchronously, {behind}"
        return Finding("replication", "warn" if late else "ok", said, cure)
    why = "" if row["sync"] in ("async", "potential") else f" (synchronous_commit is {commit})"
    cure = (
        "when it is promoted, what was acknowledged in the last moments is lost (then: evosaga "
        "recover); to lose nothing: synchronous_standby_names = 'ANY 1 (*)'"
    )
    if late:
        cure = f"look at its disk and its network; {cure}"
    return Finding("replication", "warn", f"{name} replicates asynchronously{why}, {behind}", cure)


async def check_replica(settings: Settings, pool: Pool) -> AsyncGenerator[Finding, None]:
    """Whether lists are read from the standby that was named for it; nothing where none was."""
    from evosaga.events.postgres_url import place_of
    from evosaga.events.replica import Replica

    if settings.database_replica_url is None:
        return
    replica = Replica(pool, settings.database_replica_url, settings.database_replica_lag)
    try:
        await replica.look()
        if replica.lag is None:
            await asyncio.sleep(_A_MOMENT)
            await replica.look()
    finally:
        await replica.close()
    where = place_of(settings.database_replica_url)
    if replica.trouble is None:
        yield Finding("replica", "ok", f"{where} is read for lists, {replica.lag:.1f} s behind")
        return
    cure = "lists are read from the primary meanwhile: look at its replication, or raise "
    cure += "EVOSAGA_DATABASE_REPLICA_LAG"
    named_wrongly = ("takes writes", "does not answer", "another cluster")
    if any(words in replica.trouble for words in named_wrongly):
        cure = "lists are read from the primary: does EVOSAGA_DATABASE_REPLICA_URL name a standby?"
    yield Finding("replica", "warn", f"{where} {replica.trouble}", cure)


async def check_log(pool: Pool, redis: Redis) -> AsyncGenerator[Finding, None]:
    """Whether the log has what was published. That it is known to have not is said elsewhere."""
    import asyncpg

    from evosaga.events import log_loss

    try:
        if await log_loss.recorded(pool) is not None:
            return
        found = await log_loss.compare(pool, redis)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        return  # a schema that is not up to date, which is said elsewhere
    if found.loss is not None:
        yield Finding("log", "bad", f"the log went back: {found.loss}", log_loss.RECOVER)
        return
    epoch = f"; epoch {found.epoch}" if found.epoch else ""
    yield Finding("log", "ok", f"has what was published on evosaga:events{epoch}")


_SETTINGS: Final = """
SELECT current_setting('synchronous_standby_names') AS names,
       current_setting('synchronous_commit') AS commit
"""
# Who may not see them finds no state.
_STANDBYS: Final = """
SELECT coalesce(nullif(application_name, ''), host(client_addr), 'without a name') AS name,
       sync_state AS sync, coalesce(extract(epoch FROM replay_lag), 0)::float8 AS seconds,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0)::float8 AS bytes
FROM pg_stat_replication WHERE state IN ('streaming', 'catchup') ORDER BY 1
"""
