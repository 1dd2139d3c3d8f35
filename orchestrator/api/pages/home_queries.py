"""Queries for the home page. Each is bounded, however busy the system is."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Queryable
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.queries.sagas import Filter, SagaView, list_sagas
from evosaga.orchestrator.whatsapp.explain import SERVER_CODES
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

_SHOWN: Final = 12
_PATIENCE: Final = 3.0

Verdict = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Holding:
    """Sagas that wait for the same reason."""

    code: str
    message: str
    count: int
    next_at: datetime | None
    server: str | None
    """The Evolution server that they wait for, if any."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Counts of sagas, from Postgres."""

    now: datetime
    running: int
    compensating: int
    failed: int
    oldest: datetime | None
    """When the oldest open saga began."""
    overdue: int
    """Sagas that are due and that no worker has claimed."""
    stumbled: int
    """Open sagas whose last attempt failed, was held, or will be retried."""
    needs: Sequence[SagaView]
    holdings: Sequence[Holding]

    @property
    def held(self) -> int:
        return sum(holding.count for holding in self.holdings)

    @property
    def retrying(self) -> int:
        """Sagas that are retrying or will retry."""
        return max(0, self.stumbled - self.held)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that we depend on, and its state."""

    name: str
    verdict: Verdict
    said: str
    cure: str = ""
    lasting: bool = True
    """Its state, when it is bad, does not pass by itself within moments."""


async def activity(
    pool: Queryable, organization_id: UUID | None, background: Sequence[str] = ()
) -> Activity:
    """Counts of the sagas that the caller may see, those named ``background`` left out of news."""
    numbers = await pool.fetchrow(_NUMBERS, organization_id, background)
    holdings = await pool.fetch(_HOLDINGS, organization_id, background, SERVER_CODES)
    wanted = Filter(status="failed", organization_id=organization_id)
    needs, _ = await list_sagas(pool, wanted, limit=_SHOWN)
    assert numbers is not None
    return Activity(
        now=numbers["now"],
        running=numbers["running"],
        compensating=numbers["compensating"],
        failed=numbers["failed"],
        oldest=numbers["oldest"],
        overdue=numbers["overdue"],
        stumbled=numbers["stumbled"],
        needs=needs,
        holdings=[Holding(**dict(row)) for row in holdings],
    )


async def postgres(pool: Queryable) -> Server:
    """Whether Postgres answers, and how fast."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE):
            version = await pool.fetchval("SHOW server_version")
    except (asyncpg.PostgresError, *TRANSIENT) as error:
        said = f"no answer ({reason(error)})"
        return Server("Postgres", "bad", said, "Nothing goes on without it; nothing is lost.")
    number = str(version).split(maxsplit=1)[0]
    return Server("Postgres", "ok", f"{number}, answers in {_milliseconds(began)}")


async def redis_server(redis: Redis) -> tuple[Server, streams.Backlog | None]:
    """Whether Redis answers, and the backlog of commands."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE):
            await redis.ping()
            said = f"answers in {_milliseconds(began)}"
            backlog = await streams.backlog(redis)
    except (RedisError, TimeoutError, OSError) as error:
        cure = "Commands through HTTP are accepted all the same; events wait until it is back."
        return Server("Redis", "bad", f"no answer ({reason(error)})", cure), None
    return Server("Redis", "ok", said), backlog


def _milliseconds(began: float) -> str:
    return f"{max(1, round((time.monotonic() - began) * 1000))} ms"


# Counted with the partial indexes on open sagas, so finished ones cost nothing. A saga that is
# being undone keeps the reason for that, so there only the attempt's number shows a retry.
_NUMBERS: Final = """
SELECT now() AS now,
       count(*) FILTER (WHERE status = 'running') AS running,
       count(*) FILTER (WHERE status = 'compensating') AS compensating,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       min(created_at) FILTER (WHERE status <> 'failed' AND saga <> ALL($2)) AS oldest,
       count(*) FILTER (WHERE status <> 'failed' AND next_at < now() - interval '10 s') AS overdue,
       count(*) FILTER (WHERE status <> 'failed' AND saga <> ALL($2) AND (
           attempt > 1 OR status = 'running' AND code IS NOT NULL)) AS stumbled
FROM evosaga.open_sagas WHERE $1::uuid IS NULL OR organization_id = $1
"""

# The event says whether the last attempt was held, the row does not; only waiting sagas are
# read.
_HOLDINGS: Final = f"""
SELECT s.code, min(s.message) AS message, count(*) AS count, min(s.next_at) AS next_at,
       CASE WHEN s.code LIKE ANY($3)
            THEN coalesce(b.facts ->> 'server', '{DEFAULT_SERVER}') END AS server
FROM evosaga.sagas AS s
LEFT JOIN evosaga.saga_starts AS b ON b.saga_id = s.saga_id
JOIN evosaga.saga_events AS e ON e.saga_id = s.saga_id AND e.sequence = s.next_sequence - 1
WHERE s.{ACTIVE_STATUSES} AND s.next_at IS NOT NULL AND s.code IS NOT NULL
  AND ($1::uuid IS NULL OR s.organization_id = $1)
  AND s.saga <> ALL($2)
  AND (s.held_claim IS NOT NULL
       OR e.type IN ('step.failed', 'compensation.failed') AND e.data ->> 'outcome' = 'held')
GROUP BY s.code, 5 ORDER BY count DESC, s.code, 5 LIMIT 10
"""  # noqa: S608  # constants only
