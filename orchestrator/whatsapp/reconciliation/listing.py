"""Reading the drifts that the last comparison of the stores found."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from evosaga.events.database import Queryable
from evosaga.orchestrator.queries.upkeep import JobView
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS


@dataclass(frozen=True, slots=True)
class KnownDrift:
    """A difference between the stores, why it is one, and what repairs it.

    ``looks``: comparisons that saw it since it was first seen, or since its repair was requested.
    """

    what: str
    where: str
    organization_id: UUID | None
    policy: str
    cause: str
    repair: str
    servers: list[str]
    first_seen: datetime
    last_seen: datetime
    looks: int
    repairs: int
    repaired_at: datetime | None


async def known_drifts(
    pool: Queryable, jobs: list[JobView], organization_id: UUID | None = None, *, limit: int = 100
) -> tuple[list[KnownDrift], int]:
    """Those known longest, and how many more there are. ``jobs`` hold the causes in detail."""
    rows = await pool.fetch(_DRIFTS, organization_id, limit)
    causes = {
        (shown["what"], shown["where"]): str(shown["cause"])
        for job in jobs
        for shown in job.result.get("shown", ())
    }
    total = rows[0]["total"] if rows else 0
    return [_known(dict(row), causes) for row in rows], total - len(rows)


def _known(row: dict[str, Any], causes: Mapping[tuple[str, str], str]) -> KnownDrift:
    del row["total"]
    verdict = VERDICTS.get(row["what"])
    if verdict is None:  # of a newer release
        told = {"policy": "never", "cause": row["what"], "repair": "known to a newer release only"}
        return KnownDrift(**row, **told)
    cause = causes.get((row["what"], row["where"]), _general(verdict.cause))
    return KnownDrift(**row, policy=verdict.policy, cause=cause, repair=_general(verdict.repair))


def _general(sentence: str) -> str:
    """Without the placeholders, which the comparison alone could fill."""
    return re.sub(r"\{\w+\}", "…", sentence)


_DRIFTS: Final = """
SELECT what, instance_name AS where, organization_id, coalesce(servers, '{}') AS servers,
       first_seen, last_seen, looks, repairs, repaired_at, count(*) OVER () AS total
FROM evosaga.sightings
WHERE $1::uuid IS NULL OR organization_id = $1
ORDER BY first_seen, what, instance_name LIMIT $2
"""
