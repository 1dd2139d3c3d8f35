"""One search over everything: integrations, the sagas about them, and organizations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from evosaga.events.database import Queryable
from evosaga.migrations.search_indexes import STARTS_VIEW_WORDS
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, sagas_by_part, sagas_of
from evosaga.orchestrator.whatsapp.integrations import words
from evosaga.orchestrator.whatsapp.integrations.search import (
    IntegrationList,
    Wanted,
    list_integrations,
)

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Findings:
    """What a search found. ``exact`` is what is called just so."""

    integrations: IntegrationList
    sagas: Sequence[SagaView]
    organization: UUID | None
    exact: SagaView | None = None

    @property
    def empty(self) -> bool:
        return not (self.integrations.integrations or self.sagas or self.organization)


async def find(
    pool: Queryable,
    text: str,
    organization_id: UUID | None = None,
    *,
    limit: int = _SHOWN,
    whatsapp: bool = True,
) -> Findings:
    """What is called like that, as far as the organization may see it.

    Without ``whatsapp`` the database has no integrations, and only sagas are looked for.
    """
    text = words.tidy(text)
    wanted = Wanted(search=text, organization_id=organization_id)
    integrations = IntegrationList([], 0, more=False, older=None, newer=None)
    if whatsapp:
        integrations = await list_integrations(pool, wanted, limit=limit)
    exact = await find_saga(pool, text, organization_id) if text else None
    part = text.removeprefix("wa-") if words.hexadecimal(text) else text
    found = [exact] if exact is not None else []
    found += await sagas_by_part(pool, part, organization_id, limit=limit)
    if (query := words.query(text)) is not None:
        ids = [row["saga_id"] for row in await pool.fetch(_STARTS, query, _MOST, organization_id)]
        found += await sagas_of(pool, ids, organization_id, limit=limit)
    sagas = list({saga.saga_id: saga for saga in found}.values())[:limit]
    known = await _organization(pool, text, organization_id) if whatsapp else None
    if known is None and (digits := words.hexadecimal(text)) is not None:  # of disabled ones
        of = [row.organization_id for row in integrations.integrations]
        known = min((one for one in of if one and one.hex.startswith(digits)), default=None)
    return Findings(integrations, sagas, known, exact)


async def _organization(pool: Queryable, text: str, mine: UUID | None) -> UUID | None:
    """The organization whose id begins so; the first of several."""
    digits = words.hexadecimal(text)
    if digits is None:
        return None
    if mine is not None and not mine.hex.startswith(digits):
        return None
    between = (mine, mine) if mine else (UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
    found: UUID | None = await pool.fetchval(_ORGANIZATION, *between)
    return found


_MOST: Final = 5000
"""The most beginnings of sagas that are looked at."""
# Collected first: the planner can't know how rare the beginning of a word is.
_STARTS: Final = f"""
WITH hits AS MATERIALIZED (
    SELECT saga_id FROM evosaga.saga_starts WHERE {STARTS_VIEW_WORDS} @@ $1::text::tsquery
      AND ($3::uuid IS NULL OR saga_id IN (
          SELECT saga_id FROM evosaga.sagas WHERE organization_id = $3
          ORDER BY created_at DESC, saga_id DESC LIMIT $2))
    LIMIT $2)
SELECT saga_id FROM hits
"""  # noqa: S608  # constants only
_ORGANIZATION: Final = """
SELECT organization_id FROM (
    (SELECT organization_id FROM evosaga.sagas
     WHERE organization_id BETWEEN $1 AND $2 ORDER BY organization_id LIMIT 1)
    UNION ALL
    (SELECT organization_id FROM healthcare.integrations
     WHERE organization_id BETWEEN $1 AND $2
       AND type = 'whatsapp' AND provider = 'evolution' AND enabled  -- as the index has them
     ORDER BY organization_id LIMIT 1)) AS found
ORDER BY organization_id LIMIT 1
"""
