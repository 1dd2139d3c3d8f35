"""Reading integrations: one by its instance's name, a page of them. One indexed query each."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from evosaga.events.database import Queryable
from evosaga.orchestrator.queries.sagas import cursor_after, read_cursor


@dataclass(frozen=True, slots=True)
class IntegrationView:
    """A row of ``healthcare.integrations`` without its secret.

    ``last_*`` tell of the newest saga about its instance that was not refused; None where the
    integration is older than evosaga. Rows of a table that is older may have no organization and no
    times; those come last.
    """

    id: UUID
    organization_id: UUID | None
    instance_name: str | None
    clinic_id: str | None
    name: str | None
    channel: str | None
    webhook_url: str | None
    server: str
    status: str
    enabled: bool
    whatsapp_number: str | None
    created_at: datetime | None
    updated_at: datetime | None
    last_saga_id: UUID | None
    last_saga: str | None
    last_status: str | None


async def find_integration(pool: Queryable, instance_name: str) -> IntegrationView | None:
    """The integration that has this instance; of several, the one in use."""
    row = await pool.fetchrow(
        f"{_SELECT} WHERE row.config ->> 'instance_name' = $1 "
        "ORDER BY row.enabled DESC, row.updated_at DESC NULLS LAST LIMIT 1",
        instance_name,
    )
    return IntegrationView(**dict(row)) if row else None


async def list_integrations(
    pool: Queryable,
    organization_id: UUID | None = None,
    *,
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[IntegrationView], str | None]:
    """A page, newest first, and the cursor of the next one. Raises ``BadCursor``."""
    at, last = read_cursor(cursor) if cursor is not None else (None, None)
    rows = await pool.fetch(
        f"""
        {_SELECT}
        WHERE row.type = 'whatsapp' AND row.provider = 'evolution'
          AND ($1::uuid IS NULL OR row.organization_id = $1)
          AND ($2::timestamptz IS NULL OR ({_AGE}, row.id) < ($2, $3::uuid))
        ORDER BY {_AGE} DESC, row.id DESC LIMIT $4
        """,
        organization_id,
        at,
        last,
        limit + 1,
    )
    page = [IntegrationView(**dict(row)) for row in rows[:limit]]
    end = page[-1] if len(rows) > limit else None
    return page, cursor_after(end.created_at or _NEVER, end.id) if end else None


_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AGE: Final = "coalesce(row.created_at, 'epoch')"
_SELECT: Final = """
SELECT row.id, row.organization_id, row.config ->> 'instance_name' AS instance_name,
       row.config ->> 'clinic_id' AS clinic_id, row.config ->> 'name' AS name,
       row.config ->> 'channel' AS channel, row.config ->> 'webhook_url' AS webhook_url,
       coalesce(row.config ->> 'server', 'default') AS server,
       coalesce(row.status::text, 'pending') AS status, coalesce(row.enabled, false) AS enabled,
       row.whatsapp_number, row.created_at, row.updated_at,
       last.saga_id AS last_saga_id, last.saga AS last_saga, last.status AS last_status
FROM healthcare.integrations AS row
LEFT JOIN LATERAL (
    SELECT saga_id, saga, status FROM evosaga.sagas
    WHERE instance_name = row.config ->> 'instance_name' AND status <> 'rejected'
      AND organization_id = row.organization_id
    ORDER BY created_at DESC, saga_id DESC LIMIT 1
) AS last ON true
"""
