"""Whose an instance is, and for whom a saga is at work."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from evosaga.events.database import Pool
from evosaga.orchestrator.commands.forgotten import ForgottenSaga
from evosaga.orchestrator.whatsapp.reconciliation.inventory import Listing
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import (
    Instance,
    Origin,
    RecordedState,
    Row,
    Snapshot,
    published_origins,
)
from evosaga.sagas.whatsapp.arbitration import business_key
from evosaga.sagas.whatsapp.ownership import KeyRing

_OURS: Final = re.compile(r"wa-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


async def with_busy(pool: Pool, snapshot: Snapshot, of: Sequence[Row] | None = None) -> Snapshot:
    """The same, knowing which names and organizations an open saga is at work for.

    ``of``: only of these rows. Else of all that is in the snapshot.
    """
    if of is None:
        names = [*snapshot.instances, *(row.instance_name for row in snapshot.rows)]
        origins = (origin.organization_id for origin in snapshot.origins.values())
        whose = {
            *(row.organization_id for row in snapshot.rows),
            *(one for one in origins if one is not None),
            *snapshot.older.values(),
        }
        names += [key.instance_name for key in snapshot.keys]
        whose |= {one for key in snapshot.keys if (one := _uuid(key.organization_id))}
    else:
        names, whose = [row.instance_name for row in of], {row.organization_id for row in of}
    open_ = await pool.fetch(_BUSY_OF, names, list(whose))
    busy = replace(
        snapshot,
        busy_names=frozenset(row["instance_name"] for row in open_ if row["instance_name"]),
        busy_organizations=frozenset(
            row["organization_id"]
            for row in open_
            if row["organization_id"]
            and row["business_key"].startswith(business_key(row["organization_id"]))
        ),
    )
    return busy.without(busy.unseen)


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None


async def attribute_owners(
    pool: Pool,
    keyring: KeyRing,
    listing: Listing,
    rows: Sequence[Row],
    forgotten: Sequence[ForgottenSaga] = (),
) -> Snapshot:
    """Which instances carry a birthmark of ours, and what the log says of them."""
    born = {row.instance_name: row.id for row in rows if row.born}
    rest = [name for name in listing.instances if name not in born]
    derived = {name: UUID(fit[1]) for name in rest if (fit := _OURS.fullmatch(name))}
    makers = await pool.fetch(_MAKERS, rest, list(derived.values()))
    ended = {row["created_by"] for row in await pool.fetch(_ENDED, rest)}
    by_name: dict[str, list[UUID]] = {}
    origins: dict[UUID, Origin] = {}
    for maker in makers:
        by_name.setdefault(maker["instance_name"], []).append(maker["saga_id"])
        over = maker["status"] == "compensated" or str(maker["saga_id"]) in ended
        recorded: RecordedState = "ended" if over else "alive"
        origins[maker["saga_id"]] = Origin(recorded, maker["organization_id"])
    for saga_id, (name, origin) in published_origins(forgotten).items():
        by_name.setdefault(name, []).append(saga_id)
        origins.setdefault(saga_id, origin)
    suspected = {name: [id_] for name, id_ in born.items()} | by_name
    for name, id_ in derived.items():
        suspected[name] = [*suspected.get(name, []), id_]
    return Snapshot(
        instances=await asyncio.to_thread(_recognised, keyring, listing, suspected),
        rows=rows,
        origins=origins,
        ours_by_name=frozenset({*by_name, *derived}),
        elsewhere=listing.elsewhere,
        unseen=listing.unseen,
    )


def _recognised(
    keyring: KeyRing, listing: Listing, suspected: Mapping[str, Sequence[UUID]]
) -> dict[str, Instance]:
    """The instances, those of ours with the saga whose birthmark they carry."""
    instances = dict(listing.instances)
    for name, instance in listing.instances.items():
        for saga_id in suspected.get(name, ()):
            if key_id := keyring.recognised(saga_id, listing.tokens[name]):
                instances[name] = replace(instance, made_by=saga_id, key_id=key_id)
                break
    return instances


_BUSY_OF: Final = """
SELECT instance_name, organization_id, business_key FROM evosaga.open_sagas
WHERE instance_name = ANY($1) OR organization_id = ANY($2)
"""
_MAKERS: Final = """
SELECT saga_id, instance_name, organization_id, status FROM evosaga.sagas
WHERE saga = 'create-integration' AND status <> 'rejected'
  AND (instance_name = ANY($1) OR saga_id = ANY($2))
"""
# By the create that they undo: the name alone may be another one's, on another server.
_ENDED: Final = """
SELECT born.facts ->> 'created_by' AS created_by FROM evosaga.sagas AS saga
JOIN evosaga.saga_starts AS born USING (saga_id)
WHERE saga.saga IN ('delete-integration', 'remove-orphan') AND saga.status = 'completed'
  AND saga.instance_name = ANY($1)
"""
