"""Reading one integration by its instance's name, and what a view of one consists of."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from evosaga.events.database import Queryable


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
    connection: str | None = None
    """How its phone was connected when it was last checked; None before the first check."""
    connection_since: datetime | None = None


async def find_integration(pool: Queryable, instance_name: str) -> IntegrationView | None:
    """The integration that has this instance; of several, the one in use."""
    row = await pool.fetchrow(
        f"{SELECT_VIEW.format('')} WHERE row.config ->> 'instance_name' = $1 "
        "ORDER BY row.enabled DESC, row.updated_at DESC NULLS LAST LIMIT 1",
        instance_name,
    )
    return IntegrationView(**dict(row)) if row else None


SELECT_VIEW: Final = """
SELECT row.id, row.organization_id, row.config ->> 'instance_name' AS instance_name,
       row.config ->> 'clinic_id' AS clinic_id, row.config ->> 'name' AS name,
       row.config ->> 'channel' AS channel, row.config ->> 'webhook_url' AS webhook_url,
       coalesce(row.config ->> 'server', 'default') AS server,
       coalesce(row.status::text, 'pending') AS status, coalesce(row.enabled, false) AS enabled,
       row.whatsapp_number, row.created_at, row.updated_at,
       last.saga_id AS last_saga_id, last.saga AS last_saga, last.status AS last_status,
       seen.state AS connection, seen.since AS connection_since {}
FROM healthcare.integrations AS row
LEFT JOIN evosaga.connections AS seen ON seen.integration_id = row.id
LEFT JOIN LATERAL (
    SELECT saga_id, saga, status FROM evosaga.sagas
    WHERE instance_name = row.config ->> 'instance_name' AND status <> 'rejected'
      AND organization_id = row.organization_id
    ORDER BY created_at DESC, saga_id DESC LIMIT 1
) AS last ON true
"""
