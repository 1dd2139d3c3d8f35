"""The rows of ``healthcare.integrations``, as upkeep reads them. Older tables leave much empty."""

import asyncio
from collections.abc import Sequence
from typing import Final

import asyncpg

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.integrations.paging import pages
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER


async def rows_of(pool: Pool) -> list[Row]:
    """The integrations that name an instance, the newest first."""
    found = await pages(pool, _ROWS, "id", _rows)
    return await asyncio.to_thread(sorted, found, key=_age)


def _rows(page: Sequence[asyncpg.Record]) -> list[Row]:
    return [
        Row(
            id=row["id"],
            organization_id=row["organization_id"],
            instance_name=row["instance_name"],
            status=row["status"],
            enabled=row["enabled"],
            number=row["whatsapp_number"],
            clinic_id=row["clinic_id"],
            born=row["born"],
            flag=row["state"],
            updated_at=row["updated_at"],
            fresh=row["fresh"],
            server=row["server"] or DEFAULT_SERVER,
        )
        for row in page
    ]


def _age(row: Row) -> float:
    """Smallest for the newest; a row that does not say when it was changed is the oldest."""
    return -row.updated_at.timestamp() if row.updated_at else 0.0


_ROWS: Final = """
SELECT row.id, row.organization_id, coalesce(row.status::text, 'pending') AS status,
       coalesce(row.enabled, false) AS enabled, row.whatsapp_number,
       row.updated_at, row.config ->> 'instance_name' AS instance_name,
       row.config ->> 'clinic_id' AS clinic_id, row.config ->> 'server' AS server,
       maker.saga_id IS NOT NULL AS born, known.state,
       coalesce(maker.updated_at > now() - interval '3 minutes', false) AS fresh
FROM healthcare.integrations AS row
LEFT JOIN evosaga.sagas AS maker ON maker.saga_id = row.id AND maker.saga = 'create-integration'
    AND maker.instance_name = row.config ->> 'instance_name'
LEFT JOIN evosaga.connections AS known ON known.integration_id = row.id
WHERE row.type = 'whatsapp' AND row.provider = 'evolution'
  AND row.config ->> 'instance_name' <> '' AND row.organization_id IS NOT NULL
  AND ($1::uuid IS NULL OR row.id > $1)
ORDER BY row.id LIMIT $2
"""
