"""Readiness: one named check for each thing that this process needs."""

import asyncio
import functools
from dataclasses import dataclass
from typing import Final

import asyncpg
from redis.exceptions import RedisError

from evosaga import migrations
from evosaga.events import streams
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT
from evosaga.events.redis_errors import cause
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.maintenance import redis_checks, redis_rights
from evosaga.orchestrator.queries.sagas import living_workers
from evosaga.orchestrator.whatsapp.attention import problems
from evosaga.orchestrator.whatsapp.domain import WHATSAPP

_PATIENCE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Check:
    """``needed``: without it this process is not ready. ``said`` holds no address and no secret."""

    ok: bool
    said: str
    needed: bool = True


async def checks(parts: AppContext) -> dict[str, Check]:
    """Run all checks at once; each takes a few seconds at most."""
    # First, since the watchdog repairs it within a second and the other checks take longer.
    trouble = parts.reader.trouble if parts.reader is not None else None
    (postgres, schema, workers), redis, more = await asyncio.gather(
        _postgres(parts), _redis(parts), _wrong(parts)
    )
    found = {"postgres": postgres, "schema": schema, "redis": redis} | more
    if parts.reader is None:
        return found | {"workers": workers}
    trouble = trouble or parts.reader.trouble
    found["consumers"] = Check(trouble is None, trouble or "both subscribers are running")
    dead = parts.failed is not None and parts.failed.done()
    found["worker"] = Check(not dead, "a part of it has ended" if dead else "all parts are running")
    return found


def ready(found: dict[str, Check]) -> bool:
    """Whether every needed check passed."""
    return all(check.ok for check in found.values() if check.needed)


async def _wrong(parts: AppContext) -> dict[str, Check]:
    """The problems of the home page as checks, without numbers: this route needs no key."""
    try:
        async with asyncio.timeout(_PATIENCE):
            now, backlog = await asyncio.gather(
                parts.situation(), streams.backlog(parts.redis), return_exceptions=True
            )
    except TimeoutError:
        return {}
    if isinstance(now, BaseException):
        return {}  # Postgres and the schema have checks of their own
    told = problems(now, None if isinstance(backlog, BaseException) else backlog)
    named = {one.code: one for one in told if one.code not in ("schema", "workers")}
    return {code: Check(False, one.kind, needed=False) for code, one in named.items()}


async def _postgres(parts: AppContext) -> tuple[Check, Check, Check]:
    unknown = Check(False, "Postgres can't be asked")
    try:
        async with asyncio.timeout(_PATIENCE), parts.pool.acquire() as connection:
            found, needed = await migrations.current(connection), _needed_revision()
            alive = await living_workers(connection)
    except asyncpg.UndefinedTableError:
        return Check(True, "answers"), Check(False, "missing; run evosaga migrate"), unknown
    except (asyncpg.PostgresError, *TRANSIENT) as error:
        return Check(False, f"does not answer ({reason(error)})"), unknown, unknown
    fits = found == needed or migrations.newer(found, needed)
    cure = "" if fits else f", this release needs {needed}; run evosaga migrate"
    return (
        Check(True, "answers"),
        Check(fits, f"revision {found}{cure}"),
        Check(alive > 0, f"{alive} alive", needed=False),
    )


async def _redis(parts: AppContext) -> Check:
    try:
        async with asyncio.timeout(_PATIENCE):
            await parts.redis.ping()
            role: redis_rights.Role = "worker" if parts.reader is not None else "api"
            use = parts.domains.redis if parts.domains else WHATSAPP.redis
            wrong = await redis_checks.trouble_of(parts.redis, role, use)
    except (RedisError, OSError, TimeoutError) as error:
        return Check(False, f"does not answer ({cause(error)})")
    return Check(wrong is None, wrong or "answers")


@functools.cache
def _needed_revision() -> str:
    """Cached, since it is read from files that do not change while the process runs."""
    return migrations.head()
