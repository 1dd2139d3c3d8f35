"""What people call the clinics that sagas are about: a saga's own row has ids alone."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from evosaga.events.database import Queryable


async def names_of(pool: Queryable, saga_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The clinics' names by saga, as far as they are known."""
    rows = await pool.fetch(_NAMES, list(saga_ids)) if saga_ids else []
    return {row["saga_id"]: row["name"] for row in rows if row["name"]}


async def names_of_instances(
    pool: Queryable, names: Sequence[str], organization_id: UUID | None = None
) -> dict[str, str]:
    """The clinics' names by instance; with ``organization_id``, of that one's integrations only."""
    rows = await pool.fetch(_ROWS, list(names), organization_id) if names else []
    return {row["instance_name"]: row["name"] for row in rows if row["name"]}


# What was asked for; else the integration; else what created the instance, which may be gone. Only
# of the saga's own organization: a refused delete may name an instance that is another one's.
_NAMES: Final = """
SELECT saga.saga_id, coalesce(
    nullif(own.input ->> 'name', ''),
    (SELECT config ->> 'name' FROM healthcare.integrations
     WHERE config ->> 'instance_name' = saga.instance_name
       AND (saga.organization_id IS NULL OR organization_id = saga.organization_id) LIMIT 1),
    (SELECT made.input ->> 'name' FROM evosaga.sagas AS maker
     JOIN evosaga.saga_starts AS made ON made.saga_id = maker.saga_id
     WHERE maker.instance_name = saga.instance_name AND maker.saga = 'create-integration'
       AND (saga.organization_id IS NULL OR maker.organization_id = saga.organization_id)
     ORDER BY maker.created_at DESC LIMIT 1)) AS name
FROM evosaga.sagas AS saga
LEFT JOIN evosaga.saga_starts AS own ON own.saga_id = saga.saga_id
WHERE saga.saga_id = ANY($1)
"""
_ROWS: Final = """
SELECT config ->> 'instance_name' AS instance_name, config ->> 'name' AS name
FROM healthcare.integrations WHERE config ->> 'instance_name' = ANY($1)
  AND ($2::uuid IS NULL OR organization_id = $2)
"""
