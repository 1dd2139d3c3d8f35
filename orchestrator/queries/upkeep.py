"""Reading workers and background jobs, as Postgres knows them."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from evosaga.events.clock import LIVING
from evosaga.events.database import Queryable
from evosaga.events.statuses import ACTIVE_STATUSES


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker that has shown a sign of life in the last hour."""

    worker_id: str
    alive: bool
    started_at: datetime
    lease_until: datetime
    sagas: int
    """Sagas that it has in hand."""
    definitions: list[str]
    """What it can run, as ``name/version``."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A background job: its last run, what came of it, and its next run."""

    name: str
    leader: str | None
    """The worker that is at it now."""
    last_run: datetime | None
    next_at: datetime
    result: dict[str, Any]


MOST_WORKERS: Final = 1000


async def workers(pool: Queryable, *, limit: int = MOST_WORKERS) -> list[WorkerView]:
    """The workers, those alive first."""
    return [WorkerView(**dict(row)) for row in await pool.fetch(_WORKERS, limit)]


async def jobs(pool: Queryable) -> list[JobView]:
    """The background jobs, by name."""
    rows = await pool.fetch(_JOBS)
    return [JobView(**dict(row) | {"result": json.loads(row["result"] or "{}")}) for row in rows]


_WORKERS: Final = f"""
SELECT worker_id, {LIVING} AS alive, started_at, lease_until, coalesce(held.sagas, 0) AS sagas,
       knows AS definitions
FROM evosaga.workers
LEFT JOIN (SELECT owner, count(*) AS sagas FROM evosaga.sagas
           WHERE {ACTIVE_STATUSES} AND owner IS NOT NULL GROUP BY owner) AS held
    ON held.owner = worker_id
ORDER BY alive DESC, started_at, worker_id LIMIT $1
"""  # noqa: S608  # constants only
_JOBS: Final = """
SELECT name, CASE WHEN lease_until > now() THEN leader END AS leader, last_run, next_at,
       last_result AS result
FROM evosaga.chores ORDER BY name
"""
