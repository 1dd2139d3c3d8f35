"""Confirmation of drifts: one look is not enough to repair anything.

A drift is *ripe* when it was seen in two looks, a quiet time apart: what a saga, a restart or a
late effect does in between makes drifts that pass. One that was repaired and is there again (its
repair was refused, or the world moved on) waits longer each time.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from evosaga.events.clock import LEEWAY
from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.integrations.rows import named_on, rows_by
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift

_LONGEST_WAIT: Final = 86400.0
_SHORTEST_WAIT: Final = 2.0
"""Seconds after a repair in which those who looked before it can't ask for it again."""


@dataclass(frozen=True, slots=True)
class ObservedDrift:
    """A drift and how long it has been known."""

    drift: Drift
    first_seen: datetime
    looks: int
    repairs: int
    ripe: bool

    @property
    def command_id(self) -> str:
        """The same for all processes that repair this drift, so that it is repaired once."""
        drift = self.drift
        since = int(self.first_seen.timestamp() * 1_000_000)
        return f"repair:{drift.what}:{drift.where}:{since}:{self.repairs}"


@dataclass(frozen=True, slots=True)
class Unobserved:
    """What a look could not see though it may be there, and which is therefore not forgotten.

    Of an organization that has something on one of these servers nothing is said at all.
    """

    servers: Collection[str] = ()
    organizations: Collection[UUID] = ()


async def note(
    pool: Pool,
    drifts: Sequence[Drift],
    *,
    kinds: Sequence[str],
    blind: Unobserved,
    organization_id: UUID | None = None,
    grace: float,
) -> list[ObservedDrift]:
    """Remember what this look saw, and forget what it saw no more.

    ``kinds`` are all that the look could see; with an organization only that one's are forgotten.
    ``grace`` is in seconds.
    """
    seen = list({(d.what, d.where): d for d in drifts}.values())
    columns = (
        [drift.what for drift in seen],
        [drift.where for drift in seen],
        [drift.organization_id for drift in seen],
        [json.dumps(drift.servers) for drift in seen],
    )
    hidden = list(blind.servers), list(blind.organizations)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_FORGET, *columns[:2], list(kinds), organization_id, *hidden)
        rows = await connection.fetch(_NOTE, *columns, grace, _LONGEST_WAIT, _SHORTEST_WAIT)
    by_key: dict[tuple[str, str], asyncpg.Record] = {
        (row["what"], row["instance_name"]): row for row in rows
    }
    return [
        ObservedDrift(drift, row["first_seen"], row["looks"], row["repairs"], row["ripe"])
        for drift in seen
        if (row := by_key.get((drift.what, drift.where))) is not None
    ]


async def with_rows_on(pool: Pool, servers: Collection[str]) -> set[UUID]:
    """Of the organizations whose drifts are known, those that have a row in use on one of these."""
    rows = await pool.fetch(_SEEN_OF)
    known = await rows_by(pool, organizations={row["organization_id"] for row in rows})
    return {row.organization_id for row in known if row.server in servers}


async def busy(pool: Pool, unseen: Collection[str]) -> int:
    """How many instances no look could be taken at: sagas are at work, or the server is away."""
    names = [row["instance_name"] for row in await pool.fetch(_BUSY)]
    return len(names) + (await named_on(pool, unseen, but=names) if unseen else 0)


async def repaired(pool: Pool, sighting: ObservedDrift) -> None:
    """A repair of it was asked for; what is still there after that must be seen twice again."""
    await pool.execute(_REPAIRED, sighting.drift.what, sighting.drift.where, sighting.repairs)


# Locked in the order in which they are noted, so that two who look at once wait for each other.
_FORGET: Final = """
WITH gone AS (
    SELECT what, instance_name FROM evosaga.sightings AS old
    WHERE what = ANY($3) AND ($4::uuid IS NULL OR organization_id = $4)
      AND NOT coalesce(servers && $5::text[], cardinality($5::text[]) > 0)
      AND NOT coalesce(organization_id = ANY($6::uuid[]), false)
      AND NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS seen (what, instance_name)
                      WHERE seen.what = old.what AND seen.instance_name = old.instance_name)
    ORDER BY what, instance_name FOR UPDATE
)
DELETE FROM evosaga.sightings USING gone
WHERE sightings.what = gone.what AND sightings.instance_name = gone.instance_name
"""
# A clock that was put back must not make a drift look younger than it is.
_NOTE: Final = f"""
INSERT INTO evosaga.sightings AS old (what, instance_name, organization_id, servers)
SELECT what, instance_name, organization_id,
       ARRAY(SELECT jsonb_array_elements_text(servers::jsonb))
FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[])
    AS new (what, instance_name, organization_id, servers)
ORDER BY what, instance_name
ON CONFLICT (what, instance_name) DO UPDATE SET last_seen = now(), looks = old.looks + 1,
    first_seen = least(old.first_seen, now()),
    repaired_at = CASE WHEN old.repaired_at <= now() + {LEEWAY} THEN old.repaired_at END,
    organization_id = excluded.organization_id, servers = excluded.servers
RETURNING what, instance_name, first_seen, looks, repairs,
    looks > 1 AND first_seen <= now() - make_interval(secs => $5) AND (repaired_at IS NULL
        OR repaired_at <= now() - make_interval(secs =>
            least($6, greatest($5, $7) * 2.0 ^ least(repairs, 30)))) AS ripe
"""  # noqa: S608  # constants only
_SEEN_OF: Final = """
SELECT DISTINCT organization_id FROM evosaga.sightings WHERE organization_id IS NOT NULL
"""
_BUSY: Final = """
SELECT DISTINCT instance_name FROM evosaga.open_sagas WHERE instance_name IS NOT NULL
"""
_REPAIRED: Final = """
UPDATE evosaga.sightings SET repairs = repairs + 1, repaired_at = now(), looks = 0
WHERE what = $1 AND instance_name = $2 AND repairs = $3
"""
