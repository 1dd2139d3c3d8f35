"""What ``evosaga doctor`` says of Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli import connections
from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.doctor_replication import check_log
from evosaga.orchestrator.cli.errors import CliError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.maintenance.redis_checks import Known

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
            yield _version(known.info, len(known.infos))
        for fault in known.faults:
            yield Finding(fault.check, "warn" if fault.harmless else "bad", fault.said, fault.cure)
        if known.info is not None:
            for finding in _told_by(known):
                yield finding
            if (replicas := _replicas(settings, known.infos)) is not None:
                yield replicas
        if (left_out := _left_out(settings)) is not None:
            yield left_out
        if any(fault.check in ("mode", "rights") for fault in known.faults):
            return
        async for finding in _look_at_owner(settings, redis):
            yield finding
        async for finding in _look_at_commands(redis):
            yield finding
        if known.info is not None:
            yield await _memory(settings, redis, known.infos)


def _version(info: dict[str, Any], masters: int) -> Finding:
    name = str(info.get("server_name", "redis")).capitalize()
    version = str(info.get(f"{name.lower()}_version") or info["redis_version"])
    spoken = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    old = spoken < _OLDEST
    cure = "evosaga needs Redis 7.0 or newer, or Valkey" if old else ""
    several = f", a cluster of {masters} masters" if masters > 1 else ""
    return Finding("redis", "bad" if old else "ok", f"{name} {version}{several}", cure)


def _told_by(known: Known) -> list[Finding]:
    """What needs a look at its settings. By INFO and not CONFIG, which managed servers forbid."""
    found = []
    policies = sorted({str(info.get("maxmemory_policy", "unknown")) for info in known.infos})
    if not any(fault.check == "eviction" for fault in known.faults):
        found.append(Finding("eviction", "ok", f"maxmemory-policy {' and '.join(policies)}"))
    kept = all(info.get("aof_enabled") for info in known.infos)
    cure = "" if kept else "a crash loses commands that were not read yet: set appendonly to yes"
    said = f"appendonly {'yes' if kept else 'no'}"
    return [*found, Finding("persistence", "ok" if kept else "warn", said, cure)]


def _replicas(settings: Settings, infos: Sequence[dict[str, Any]]) -> Finding | None:
    """What a failover would cost: of a cluster, or behind Sentinels. None of a single Redis."""
    from evosaga.events import redis_address

    if redis_address.read(str(settings.redis_url)).kind == "single":
        return None
    if lonely := sum(not info.get("connected_slaves") for info in infos):
        said = f"{lonely} of {len(infos)} masters have no replica"
        return Finding("replicas", "warn", said, "while such a master is away, all of it waits")
    # INFO tells it only where min-replicas-to-write is set.
    if not all("min_slaves_good_slaves" in info for info in infos):
        said = "a master acknowledges what no replica has yet, and a failover loses that"
        return Finding("replicas", "warn", said, "set min-replicas-to-write to 1 on every node")
    return Finding("replicas", "ok", "a master takes nothing while no replica follows it")


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
        said = "this database's" if mark else "not marked yet; the first worker does that"
        yield Finding("owner", "ok", f"this Redis is {said}")
        async with connections.postgres(settings) as pool:
            async for finding in check_log(pool, redis):
                yield finding


async def _memory(settings: Settings, redis: Redis, infos: Sequence[dict[str, Any]]) -> Finding:
    """Whether what the streams are to keep will fit."""
    from evosaga.events import streams
    from evosaga.events.retention import Retention
    from evosaga.orchestrator import app
    from evosaga.orchestrator.maintenance.redis_memory import forecast

    names = (streams.EVENTS, *app.domains_of(settings).streams)
    keep = Retention(settings.events_keep, settings.events_most_bytes)
    found = await forecast(redis, names, keep, infos)
    told = [
        f"{one.stream} has {_mb(one.size)} in {one.entries:,} entries"
        + (f", will have {_mb(one.announced)}" if one.announced is not None else "")
        for one in found.streams
    ]
    room = f" of {_mb(found.room)}" if found.room is not None else ""
    said = "; ".join([*told, f"Redis will have {_mb(found.announced)}{room}"])
    cure = "keep less: EVOSAGA_EVENTS_KEEP (seconds), EVOSAGA_EVENTS_MOST_BYTES; or give it more"
    return Finding("memory", "ok" if found.fits else "warn", said, "" if found.fits else cure)


def _mb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


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
