"""The rows of ``healthcare.integrations``, as upkeep reads them. Older tables leave much empty."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool
from evosaga.migrations.search_indexes import SERVER
from evosaga.orchestrator.whatsapp.integrations.paging import pages
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

_SOME: Final = 250
"""Rows of a server that are read at a time: a few milliseconds of work, on the event loop itself.

In threads beside it that work would hold it up for longer: for each system call it would have to
wait until a thread lets go of Python's lock.
"""


async def rows_of(pool: Pool) -> list[Row]:
    """The integrations that name an instance, the newest first."""
    found = await pages(pool, _ROWS, "id", _rows)
    return await asyncio.to_thread(sorted, found, key=_age)


async def rows_on(pool: Pool, server: str) -> AsyncIterator[list[Row]]:
    """The integrations in use whose instance should be on that server, page by page.

    Of several that name one instance only the newest. One that is being deleted is left out.
    """
    after: UUID | None = None
    while True:
        page = await pool.fetch(_ROWS_ON, after, _SOME, server)
        if page:
            yield _rows(page)
        if len(page) < _SOME:
            return
        after = page[-1]["id"]


async def servers_named(pool: Pool) -> list[str]:
    """The Evolution servers on which enabled integrations should be."""
    return [row["server"] for row in await pool.fetch(_SERVERS) if row["server"] is not None]


async def number_on(pool: Pool, server: str) -> int:
    """How many integrations in use should be on that server."""
    number: int = await pool.fetchval(_NUMBER_ON, server)
    return number


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


_COLUMNS: Final = """
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
"""
_OURS: Final = """
row.type = 'whatsapp' AND row.provider = 'evolution'
  AND row.config ->> 'instance_name' <> '' AND row.organization_id IS NOT NULL
"""
_USED: Final = "{0}.enabled AND coalesce({0}.status::text, 'pending') <> 'deleting'"
_ROWS: Final = f"""
{_COLUMNS} WHERE {_OURS} AND ($1::uuid IS NULL OR row.id > $1)
ORDER BY row.id LIMIT $2
"""
_AFTER: Final = "row.id > coalesce($1::uuid, '00000000-0000-0000-0000-000000000000')"
_ROWS_ON: Final = f"""
{_COLUMNS} WHERE {_OURS} AND {_USED.format("row")} AND {SERVER.format("row.")} = $3 AND {_AFTER}
  AND NOT EXISTS (
    SELECT FROM healthcare.integrations AS twin
    WHERE twin.config ->> 'instance_name' = row.config ->> 'instance_name' AND twin.id <> row.id
      AND twin.type = 'whatsapp' AND twin.provider = 'evolution' AND {_USED.format("twin")}
      AND twin.organization_id IS NOT NULL
      AND (coalesce(twin.updated_at, '-infinity'), row.id)
        > (coalesce(row.updated_at, '-infinity'), twin.id))
ORDER BY row.id LIMIT $2
"""
_NUMBER_ON: Final = f"""
SELECT count(*) FROM healthcare.integrations AS row
WHERE {_OURS} AND {_USED.format("row")} AND {SERVER.format("row.")} = $1
"""  # noqa: S608  # constants only
_NEXT: Final = f"""
SELECT {SERVER.format("row.")} AS server FROM healthcare.integrations AS row
WHERE {_OURS} AND row.enabled AND {{}} ORDER BY 1 LIMIT 1
"""  # noqa: S608  # constants only
# From one server to the next by the index, whatever number of rows each has.
_SERVERS: Final = f"""
WITH RECURSIVE seen AS (
    ({_NEXT.format("true")})
    UNION ALL
    SELECT ({_NEXT.format(f"{SERVER.format('row.')} > seen.server")})
    FROM seen WHERE seen.server IS NOT NULL
)
SELECT server FROM seen
"""  # noqa: S608  # constants only
