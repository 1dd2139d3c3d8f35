"""Admission of creates and deletes: reads which integrations and open sagas there are.

One query for a whole batch, inside the accepting transaction; what follows from it is decided in
``evosaga.sagas.whatsapp.admission_rules``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from evosaga.events.upcasting import upcast
from evosaga.sagas.admission import Admission, AdmitTogether, Candidate, Refusal
from evosaga.sagas.whatsapp.admission_facts import (
    LEFT,
    LEFT_WITH_A_PHONE,
    Found,
    Left,
    OpenSaga,
    Row,
)
from evosaga.sagas.whatsapp.admission_rules import Policy, arbitrate
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER


async def admit(
    connection: Any, services: Services, commands: Sequence[Candidate[Any]]
) -> list[Admission | Refusal]:
    """Weigh creates and deletes against what is there, and against each other."""
    asked = [one.input for one in commands]
    organizations = {data.organization_id for data in asked if data.organization_id}
    names = {one.input.instance_name or f"wa-{one.saga_id}" for one in commands}
    mine = [one.saga_id for one in commands]
    found = await look(connection, sorted(organizations), sorted(names), mine)
    policy = Policy(
        services.keys.current,
        services.webhook_hosts,
        services.create_deadline,
        frozenset(services.servers),
    )
    return arbitrate(found, commands, policy)


TOGETHER: Final = AdmitTogether(admit)


async def look(
    connection: Any,
    organizations: Sequence[UUID],
    instance_names: Sequence[str],
    but: Sequence[UUID] = (),
) -> Found:
    """The integrations and open sagas of these organizations and of the owners of these names.

    ``but`` are sagas that ask for themselves.
    """
    rows = await connection.fetch(_LOOK, organizations, instance_names, but)
    return Found(
        [
            Row(
                row["id"],
                row["organization_id"],
                row["instance_name"],
                row["status"],
                row["enabled"],
                row["clinic_id"],
                row["key_id"],
                row["server"],
            )
            for row in rows
            if row["saga"] is None
        ],
        [
            OpenSaga(
                row["id"],
                row["saga"],
                row["status"],
                row["business_key"],
                row["organization_id"],
                row["instance_name"],
                row["step"],
                row["behind"],
                row["clinic_id"],
                _facts(row),
            )
            for row in rows
            if row["saga"] not in (None, _SEEN)
        ],
        [
            Left(row["instance_name"], row["organization_id"], row["status"], row["server"])
            for row in rows
            if row["saga"] == _SEEN
        ],
    )


def _facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    stored = {"saga": row["saga"], "facts": json.loads(row["facts"] or "{}")}
    facts: Mapping[str, Any] = upcast("saga.started", stored)["facts"]
    return facts


_SEEN: Final = "sighting"
_OURS: Final = "row.type = 'whatsapp' AND row.provider = 'evolution'"
# What one batch has begun has one moment, so the place in the log says which of it came first.
# Three questions instead of one with OR: each of them has a partial index of its own. A row that
# was pointed at another instance since it was made says nothing of that one's birthmark.
_LOOK: Final = f"""
WITH org AS (
    SELECT unnest($1::uuid[]) AS id
    UNION
    SELECT organization_id FROM healthcare.integrations AS row
    WHERE {_OURS} AND config ->> 'instance_name' = ANY($2)
    UNION
    SELECT organization_id FROM evosaga.open_sagas
    WHERE behind IS NULL AND instance_name = ANY($2)
    UNION
    SELECT organization_id FROM evosaga.open_sagas
    WHERE behind IS NOT NULL AND instance_name = ANY($2)
), saga AS (
    SELECT saga_id FROM evosaga.open_sagas
    WHERE business_key IN (SELECT 'whatsapp/evolution/' || id FROM org)
    UNION
    SELECT saga_id FROM evosaga.open_sagas
    WHERE behind IS NULL AND instance_name = ANY($2)
    UNION
    SELECT saga_id FROM evosaga.open_sagas
    WHERE behind IS NOT NULL AND organization_id IN (SELECT id FROM org)
)
SELECT row.id, row.organization_id, row.config ->> 'instance_name' AS instance_name,
       coalesce(row.status::text, 'pending') AS status, coalesce(row.enabled, false) AS enabled,
       row.config ->> 'clinic_id' AS clinic_id,
       born.facts ->> 'key_id' AS key_id, row.updated_at AS at,
       NULL AS saga, NULL AS business_key, NULL AS step, NULL::uuid AS behind, NULL AS facts,
       coalesce(nullif(row.config ->> 'server', ''), '{DEFAULT_SERVER}') AS server,
       born.position AS place
FROM healthcare.integrations AS row
LEFT JOIN evosaga.saga_starts AS born
    ON born.saga_id = row.id AND born.instance_name = row.config ->> 'instance_name'
WHERE {_OURS} AND ((row.organization_id = ANY($1) AND row.enabled)
                   OR row.config ->> 'instance_name' = ANY($2))
UNION ALL
SELECT saga.saga_id, saga.organization_id, saga.instance_name, saga.status,
       NULL, born.input ->> 'clinic_id', NULL, saga.created_at,
       saga.saga, saga.business_key, saga.step, saga.behind, born.facts::text, NULL,
       born.position
FROM evosaga.sagas AS saga
JOIN (SELECT saga_id FROM saga EXCEPT SELECT unnest($3::uuid[])) AS concerned USING (saga_id)
LEFT JOIN evosaga.saga_starts AS born ON born.saga_id = saga.saga_id
UNION ALL
SELECT NULL::uuid, organization_id, instance_name, what, NULL, NULL, NULL, first_seen,
       '{_SEEN}', NULL, NULL, NULL, NULL,
       CASE WHEN cardinality(servers) = 1 THEN servers[1] ELSE '{DEFAULT_SERVER}' END, NULL
FROM evosaga.sightings
WHERE last_seen > now() - interval '3 days'
  AND (what IN {LEFT} AND instance_name = ANY($2)
       OR what IN {LEFT_WITH_A_PHONE} AND organization_id = ANY($1))
ORDER BY at NULLS FIRST, place
"""  # noqa: S608  # constants only
