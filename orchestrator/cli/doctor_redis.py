"""What ``evosaga doctor`` says of Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli import connections
from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.doctor_replication import check_log
from evosaga.orchestrator.cli.errors import CliError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.orchestrator.config.settings import Settings

_OLDEST: Final = (7, 0)
_LATE: Final = 1000
"""So many commands behind is worth a word."""


async def check_redis(settings: Settings) -> AsyncGenerator[Finding, None]:
    """What is wrong with it, whose it is, and what waits there."""
    from evosaga.orchestrator import app
    from evosaga.orchestrator.maintenance import redis_checks

    async with connections.redis(settings) as redis:
        known = await redis_checks.look(redis, use=app.domains_of(settings).redis)
        if known.info is None:
            yield Finding("redis", "ok", "answers")
        else:
            yield _version(known.info)
        for fault in known.faults:
            yield Finding(fault.check, "warn" if fault.harmless else "bad", fault.said, fault.cure)
        if known.info is not None:
            for finding in _told_by(known.info, known.faults):
                yield finding
        if (left_out := _left_out(settings)) is not None:
            yield left_out
        if any(fault.check in ("mode", "rights") for fault in known.faults):
            return
        async for finding in _look_at_owner(settings, redis):
            yield finding
        async for finding in _look_at_commands(redis):
            yield finding


def _version(info: dict[str, Any]) -> Finding:
    name = str(info.get("server_name", "redis")).capitalize()
    version = str(info.get(f"{name.lower()}_version") or info["redis_version"])
    spoken = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    old = spoken < _OLDEST
    cure = "evosaga needs Redis 7.0 or newer, or Valkey" if old else ""
    return Finding("redis", "bad" if old else "ok", f"{name} {version}", cure)


def _told_by(info: dict[str, Any], faults: Any) -> list[Finding]:
    """What needs a look at its settings. By INFO and not CONFIG, which managed servers forbid."""
    found = []
    policy = str(info.get("maxmemory_policy", "unknown"))
    if not any(fault.check == "eviction" for fault in faults):
        found.append(Finding("eviction", "ok", f"maxmemory-policy {policy}"))
    kept = bool(info.get("aof_enabled"))
    cure = "" if kept else "a crash loses commands nobody has read yet: set appendonly to yes"
    said = f"appendonly {'yes' if kept else 'no'}"
    return [*found, Finding("persistence", "ok" if kept else "warn", said, cure)]


def _left_out(settings: Settings) -> Finding | None:
    from evosaga.events.redis_url import usable

    names = usable(str(settings.redis_url))[1]
    if not names:
        return None
    cure = "evosaga sets that itself; take it out of EVOSAGA_REDIS_URL, or leave it for others"
    return Finding("redis url", "warn", f"{', '.join(names)} is not obeyed", cure)


async def _look_at_owner(settings: Settings, redis: Redis) -> AsyncGenerator[Finding, None]:
    """Whether this Redis is this database's. That Postgres is away is said elsewhere."""
    from evosaga.events.database import TRANSIENT
    from evosaga.orchestrator.maintenance import redis_owner

    with contextlib.suppress(CliError, *TRANSIENT):
        async with connections.postgres(settings) as pool:
            database = await redis_owner.identity(pool)
        try:
            mark = await redis_owner.look(redis, database)
        except redis_owner.RedisTaken as taken:
            said, _, cure = str(taken).partition(": ")
            yield Finding("owner", "bad", said, cure)
            return
        said = "this database's" if mark else "nobody's yet; the first worker has it marked"
        yield Finding("owner", "ok", f"this Redis is {said}")
        async with connections.postgres(settings) as pool:
            async for finding in check_log(pool, redis):
                yield finding


async def _look_at_commands(redis: Redis) -> AsyncGenerator[Finding, None]:
    from evosaga.events import streams

    backlog = await streams.backlog(redis)
    if backlog is None:
        waiting = await redis.xlen(streams.COMMANDS)
        said = f"no worker has ever run here; {waiting} commands wait"
        yield Finding("commands", "warn", said, "the first worker makes the group and reads them")
        dead = await redis.xlen(streams.DEAD_COMMANDS)
    else:
        lag = "unknown" if backlog.lag is None else backlog.lag
        said = f"{lag} unread, {backlog.pending} being accepted"
        late = (backlog.lag or 0) + backlog.pending > _LATE
        cure = "start more workers: evosaga worker" if late else ""
        yield Finding("commands", "warn" if late else "ok", said, cure)
        dead = backlog.dead
    cure = "what and why: evosaga letters" if dead else ""
    yield Finding("dead letters", "warn" if dead else "ok", str(dead), cure)
