"""Reading how integrations are connected, as the last check found them. One indexed query."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from evosaga.events.database import Queryable
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, WELL


@dataclass(frozen=True, slots=True)
class ConnectionFinding:
    """An integration and its connection; one that no check has seen yet is as its row says."""

    integration_id: UUID
    organization_id: UUID | None
    instance_name: str
    name: str | None
    status: str
    state: str
    since: datetime | None
    checked_at: datetime | None
    reason: int | None
    reconnects: int
    next_reconnect_at: datetime | None
    alerted_at: datetime | None

    @property
    def well(self) -> bool:
        """Whether nothing is wrong with it; a phone that is being deleted needs nothing."""
        return self.state in WELL or self.status == "deleting"

    @property
    def cure(self) -> str:
        """What can be done, in a sentence; empty where nothing has to be."""
        return CURES.get(self.state, "")


async def findings(
    pool: Queryable,
    organization_id: UUID | None = None,
    *,
    well: bool | None = None,
    limit: int = 100,
    after: UUID | None = None,
) -> tuple[list[ConnectionFinding], UUID | None]:
    """A page, by the integration's id, and the id behind which the next one begins."""
    rows = await pool.fetch(_FINDINGS, organization_id, well, after, list(WELL), limit + 1)
    page = [ConnectionFinding(**dict(row)) for row in rows[:limit]]
    return page, page[-1].integration_id if len(rows) > limit else None


async def last_check(pool: Queryable) -> datetime | None:
    """When all integrations were last checked; None where that never happened."""
    at: datetime | None = await pool.fetchval(_LAST)
    return at


_FINDINGS: Final = """
SELECT row.id AS integration_id, row.organization_id,
       row.config ->> 'instance_name' AS instance_name, row.config ->> 'name' AS name,
       coalesce(row.status::text, 'pending') AS status,
       coalesce(seen.state, row.status::text, 'pending') AS state, seen.since, seen.checked_at,
       seen.reason, coalesce(seen.reconnects, 0) AS reconnects, seen.next_reconnect_at,
       seen.alerted_at
FROM healthcare.integrations AS row
LEFT JOIN evosaga.connections AS seen ON seen.integration_id = row.id
WHERE row.type = 'whatsapp' AND row.provider = 'evolution' AND row.enabled
  AND row.config ->> 'instance_name' IS NOT NULL
  AND ($1::uuid IS NULL OR row.organization_id = $1)
  AND ($2::bool IS NULL OR $2 = (coalesce(seen.state, row.status::text, 'pending') = ANY($4)
                                 OR row.status::text IS NOT DISTINCT FROM 'deleting'))
  AND ($3::uuid IS NULL OR row.id > $3)
ORDER BY row.id LIMIT $5
"""
_LAST: Final = "SELECT last_run FROM evosaga.chores WHERE name = 'health'"
