"""Looking at all the stores at once: Evolution's lists, Postgres, Redis and the open sagas.

A list is one call however many instances there are; what looks wrong in it is asked about by name
in the next stage (``probes``).
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events.connection_errors import reason
from evosaga.events.database import Pool
from evosaga.events.redis_clients import masters
from evosaga.orchestrator.commands.forgotten import ForgottenSaga
from evosaga.orchestrator.config import legacy_names
from evosaga.orchestrator.whatsapp.integrations.rows import rows_of
from evosaga.orchestrator.whatsapp.reconciliation.drift import key_says
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    Listing,
    ObservationFailed,
    listed,
    merge,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import (
    Instance,
    Keep,
    Key,
    Origin,
    RecordedState,
    Row,
    Snapshot,
    published_origins,
)
from evosaga.sagas.whatsapp.arbitration import business_key
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key

_OURS: Final = re.compile(r"wa-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Observation:
    """What the stores say. ``tokens`` are the instances' own, for the next stage alone."""

    snapshot: Snapshot
    tokens: Mapping[str, str] = field(repr=False)


async def observe(
    pool: Pool,
    services: Services,
    *,
    patterns: Sequence[str] = (),
    keys: bool = True,
    keep: Keep | None = None,
    forgotten: Sequence[ForgottenSaga] = (),
) -> Observation:
    """First stage of a reconcile run. Raises ``ObservationFailed`` when a store can't be read.

    ``patterns``: how older code named its instances. ``keys``: whether to look at Redis, too.
    ``forgotten``: sagas that the stream of events knows and the log does not.
    """
    lists = await listed(services)
    rows = await rows_of(pool)
    listing = await asyncio.to_thread(merge, lists, rows)
    snapshot = await attribute_owners(pool, services.keys, listing, rows, forgotten)
    if patterns:
        wanted = keep.organization_id if keep else None
        snapshot = replace(snapshot, older=await _older(pool, snapshot, patterns, wanted))
    snapshot = _given(snapshot, keep)
    if keys:
        snapshot = replace(snapshot, keys=await _keys(services.redis, snapshot.named()))
    return Observation(await with_busy(pool, replace(snapshot, keep=keep)), listing.tokens)


def _given(snapshot: Snapshot, keep: Keep | None) -> Snapshot:
    """The same where the instance that a person wants an organization to keep is that one's.

    The log has forgotten those that were made before the database was restored.
    """
    chosen = snapshot.instances.get(keep.choice) if keep else None
    if keep is None or chosen is None:
        return snapshot
    if chosen.made_by is not None:
        own = {chosen.made_by: Origin("alive", keep.organization_id)}
        return replace(snapshot, origins={**own, **snapshot.origins})
    if chosen.like_ours:
        return replace(snapshot, older={chosen.name: keep.organization_id, **snapshot.older})
    return snapshot


async def with_busy(pool: Pool, snapshot: Snapshot, of: Sequence[Row] | None = None) -> Snapshot:
    """The same, knowing which names and organizations an open saga is at work for.

    ``of``: only of these rows, where there may be very many sagas.
    """
    if of is None:
        open_ = await pool.fetch(_BUSY)
    else:
        names = [row.instance_name for row in of]
        open_ = await pool.fetch(_BUSY_OF, names, [row.organization_id for row in of])
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


# --- whose is it? -----------------------------------------------------------------------------


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


async def _older(
    pool: Pool, snapshot: Snapshot, patterns: Sequence[str], wanted: UUID | None
) -> dict[str, UUID]:
    """Instances of older code by their names, with the organization in each name.

    An id that neither rows nor sagas know is taken for an organization's whose row is gone: that
    is what half deletes leave.
    """
    named = {row.instance_name for row in snapshot.rows}
    free = [
        name
        for name, one in snapshot.instances.items()
        if name not in named and one.made_by is None and name not in snapshot.ours_by_name
    ]
    found = await asyncio.to_thread(legacy_names.candidates, free, patterns)
    known = {row.organization_id for row in snapshot.rows} | ({wanted} if wanted else set())
    strange = sorted({*found.values()} - known)
    known |= {row["organization_id"] for row in await pool.fetch(_ORGANIZATIONS, strange)}
    clinics: dict[UUID, UUID] = {}
    for row in snapshot.rows:
        try:
            clinics[UUID(row.clinic_id or "")] = row.organization_id
        except ValueError:
            continue
    return found | legacy_names.by_organization(found, known, clinics)


# --- Redis ------------------------------------------------------------------------------------


async def _keys(redis: Redis, rows: Mapping[str, Row]) -> list[Key]:
    """The routing keys that do not say what their rows do, of each master of a cluster."""
    try:
        return [
            key for master in await masters(redis) for key in await _keys_of(master, redis, rows)
        ]
    except RedisError as error:
        said = f"Redis does not answer ({reason(error)})"
        cure = "is it running, and is EVOSAGA_REDIS_URL right?"
        raise ObservationFailed(f"{said}: {cure}") from error


async def _keys_of(master: Redis, redis: Redis, rows: Mapping[str, Row]) -> list[Key]:
    found: list[Key] = []
    cursor = 0
    while True:
        cursor, page = await master.scan(cursor, match=routing_key.key("*"), count=_PAGE)
        if page:
            pipeline = redis.pipeline(transaction=False)
            for key in page:
                pipeline.get(key)
                pipeline.pttl(key)
            told = await pipeline.execute(raise_on_error=False)
            seen = [_key(*one) for one in zip(page, told[::2], told[1::2], strict=True)]
            found += [one for one in seen if not _agrees(one, rows.get(one.instance_name))]
        if not cursor:
            return found


def _agrees(key: Key, row: Row | None) -> bool:
    """Nearly all of a million do, and nothing is to be said of those."""
    return row is not None and row.enabled and key_says(key, row) == "right"


def _key(key: bytes | str, value: Any, life: Any) -> Key:
    text = key if isinstance(key, str) else key.decode(errors="replace")
    name = text.removeprefix(routing_key.key(""))
    try:
        told = json.loads(value)
        organization, clinic = str(told["organization_id"]), told["clinic_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Key(name, None, None, readable=False)
    clinic = str(clinic) if clinic is not None else None
    return Key(name, organization, clinic, expires=isinstance(life, int) and life >= 0)


_BUSY: Final = """
SELECT instance_name, organization_id, business_key FROM evosaga.open_sagas
"""
_BUSY_OF: Final = f"{_BUSY} WHERE instance_name = ANY($1) OR organization_id = ANY($2)"
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
_ORGANIZATIONS: Final = """
SELECT DISTINCT organization_id FROM evosaga.sagas WHERE organization_id = ANY($1)
"""
