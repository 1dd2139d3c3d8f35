"""The rows of ``healthcare.integrations``, as upkeep reads them. Older tables leave much empty."""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool
from evosaga.migrations.search_indexes import SERVER
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

_SOME: Final = 250
"""Rows of a server that are read at a time: a few milliseconds of work, on the event loop itself.

In threads beside it that work would hold it up for longer: for each system call it would have to
wait until a thread lets go of Python's lock.
"""


async def rows_on(pool: Pool, server: str) -> AsyncIterator[list[Row]]:
    """The integrations in use whose instance should be on that server, page by page.

    Of several that name one instance only the newest. One that is being deleted is left out.
    """
    async for page in _pages(pool, _ROWS_ON, server):
        yield _rows(page)


@dataclass(frozen=True, slots=True)
class ScannedRow:
    """A row as a comparison of everything scans it.

    ``alone``: no other row names its instance, and its organization has no other one in use.
    ``checked``: when the health check last asked about it, in seconds since 1970; 0.0: never.
    """

    row: Row
    alone: bool
    checked: float


async def scan(pool: Pool, server: str) -> AsyncIterator[list[ScannedRow]]:
    """All rows whose instance should be on that server, by ascending id, page by page."""
    async for page in _pages(pool, _SCAN, server):
        rows = _rows(page)
        yield [
            ScannedRow(row, one["alone"], one["checked"])
            for row, one in zip(rows, page, strict=True)
        ]


async def _pages(pool: Pool, query: str, server: str) -> AsyncIterator[list[asyncpg.Record]]:
    after: UUID | None = None
    while page := await pool.fetch(query, after, _SOME, server):
        yield page
        if len(page) < _SOME:
            return
        after = page[-1]["id"]


async def rows_by(
    pool: Pool,
    *,
    ids: Collection[UUID] = (),
    names: Collection[str] = (),
    organizations: Collection[UUID] = (),
    whole: UUID | None = None,
) -> list[Row]:
    """The rows with these ids, with these instance names, and those in use of these organizations.

    ``whole``: an organization of which the others are wanted as well.
    """
    found: dict[UUID, Row] = {}
    for query, wanted in ((_BY_ID, ids), (_BY_NAME, names), (_BY_ORGANIZATION, organizations)):
        every = list(wanted)
        for at in range(0, len(every), _SOME):
            page = _rows(await pool.fetch(query, every[at : at + _SOME]))
            found |= {row.id: row for row in page}
    if whole is not None:
        found |= {row.id: row for row in _rows(await pool.fetch(_WHOLE, whole))}
    return list(found.values())


def newest_first(rows: Iterable[Row]) -> list[Row]:
    """Those that were changed last come first."""
    return sorted(sorted(rows, key=lambda row: row.id), key=_age)


async def organizations_of(pool: Pool, ids: Collection[UUID]) -> tuple[set[UUID], dict[UUID, UUID]]:
    """Which of these are organizations with a row; and which are clinics, of which organization."""
    known = {row["organization_id"] for row in await pool.fetch(_WITH_ROW, list(ids))}
    found = await pool.fetch(_CLINICS, [one.hex for one in ids])
    return known, {UUID(row["clinic_id"]): row["organization_id"] for row in found}


async def named_on(pool: Pool, servers: Collection[str], but: Collection[str]) -> int:
    """How many instance names the rows of these servers have, without those given."""
    number: int = await pool.fetchval(_NAMES_ON, list(servers), list(but))
    return number


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
_ALONE: Final = f"""
, NOT EXISTS (
    SELECT FROM healthcare.integrations AS twin
    WHERE twin.config ->> 'instance_name' = row.config ->> 'instance_name' AND twin.id <> row.id
  ) AND NOT EXISTS (
    SELECT FROM healthcare.integrations AS other
    WHERE other.organization_id = row.organization_id AND other.id <> row.id
      AND {_OURS.replace("row.", "other.")} AND other.enabled
  ) AS alone, coalesce(extract(epoch FROM known.checked_at), 0)::float8 AS checked
FROM healthcare.integrations AS row
"""  # noqa: S608  # constants only
_SCAN: Final = f"""
{_COLUMNS.replace("FROM healthcare.integrations AS row", _ALONE)}
WHERE {_OURS} AND {SERVER.format("row.")} = $3 AND {_AFTER} ORDER BY row.id LIMIT $2
"""
_BY_ID: Final = f"{_COLUMNS} WHERE {_OURS} AND row.id = ANY($1)"
_BY_NAME: Final = f"{_COLUMNS} WHERE {_OURS} AND row.config ->> 'instance_name' = ANY($1)"
_BY_ORGANIZATION: Final = (
    f"{_COLUMNS} WHERE {_OURS} AND row.enabled AND row.organization_id = ANY($1)"
)
_WHOLE: Final = f"{_COLUMNS} WHERE {_OURS} AND row.organization_id = $1"
_WITH_ROW: Final = f"""
SELECT DISTINCT row.organization_id FROM healthcare.integrations AS row
WHERE {_OURS} AND row.organization_id = ANY($1)
"""  # noqa: S608  # constants only
_CLINIC: Final = "lower(replace(row.config ->> 'clinic_id', '-', ''))"
# The one that was changed longest ago counts, as the last of the newest first.
_CLINICS: Final = f"""
SELECT DISTINCT ON (1) {_CLINIC} AS clinic_id, row.organization_id
FROM healthcare.integrations AS row
WHERE {_OURS} AND {_CLINIC} = ANY($1)
ORDER BY 1, row.updated_at NULLS FIRST, row.id DESC
"""  # noqa: S608  # constants only
_NAMES_ON: Final = f"""
SELECT count(DISTINCT row.config ->> 'instance_name') FROM healthcare.integrations AS row
WHERE {_OURS} AND {SERVER.format("row.")} = ANY($1)
  AND row.config ->> 'instance_name' <> ALL($2)
"""  # noqa: S608  # constants only
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
