"""Looking at all the stores at once: Evolution's lists, Postgres, Redis and the open sagas.

A list is one call however many instances there are. What agrees in it and in the table is left out
(``sift``), and what looks wrong is asked about by name in the next stage (``probes``).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
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
from evosaga.orchestrator.whatsapp.integrations.rows import (
    newest_first,
    organizations_of,
    rows_by,
    servers_named,
)
from evosaga.orchestrator.whatsapp.reconciliation import incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.drift import key_says
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    NOT_CONFIGURED,
    ObservationFailed,
    merge,
)
from evosaga.orchestrator.whatsapp.reconciliation.owners import attribute_owners, with_busy
from evosaga.orchestrator.whatsapp.reconciliation.sift import (
    ASKED,
    Sieve,
    Sifted,
    fetch_back,
    listed_names,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep, Key, Origin, Row, Snapshot
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps import routing_key

_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Observation:
    """What the stores say. ``tokens`` are the instances' own, for the next stage alone.

    ``sifted`` has what is not in the snapshot, since it agrees.
    """

    snapshot: Snapshot
    tokens: Mapping[str, str] = field(repr=False)
    sifted: Sifted = field(default_factory=Sifted, repr=False)


async def observe(
    pool: Pool,
    services: Services,
    *,
    patterns: Sequence[str] = (),
    keys: bool = True,
    keep: Keep | None = None,
    share: int = 0,
    forgotten: Sequence[ForgottenSaga] = (),
) -> Observation:
    """First stage of a reconcile run. Raises ``ObservationFailed`` when a store can't be read.

    ``patterns``: how older code named its instances. ``keys``: whether to look at Redis, too.
    ``share``: of so many that agree the webhook will be asked for. ``forgotten``: sagas that the
    stream of events knows and the log does not.
    """
    kept = await incomplete_instances.suspects(pool)
    kept |= {one.instance_name for one in forgotten if one.instance_name}
    asked = ASKED if keys and keep is None else 0
    sifted = await Sieve(pool, services, kept, share=share, asked=asked).run()
    names = {name for told in sifted.lists.values() for name in listed_names(told)}
    names |= {keep.choice} if keep else set()
    fetch_back(services, sifted, await rows_by(pool, names=names))
    wish = _Wish(patterns, keep, forgotten)
    snapshot, _ = await _attributed(pool, services, sifted, wish)
    wrong: list[Key] = []
    if keys:
        wrong = await _wrong_keys(pool, services.redis)
        told = [key.instance_name for key in wrong]
        fetch_back(services, sifted, await rows_by(pool, names=told))
    # An organization that has one thing of which something is to be said is looked at as a whole.
    origins = (origin.organization_id for origin in snapshot.origins.values())
    whose = {*(row.organization_id for row in snapshot.rows), *snapshot.older.values()}
    whose |= {one for one in origins if one is not None}
    whole = keep.organization_id if keep else None
    rows = await rows_by(pool, organizations=whose, whole=whole)
    fetch_back(services, sifted, rows)
    snapshot, tokens = await _attributed(pool, services, sifted, wish)
    snapshot = replace(snapshot, keys=wrong, keep=keep)
    return Observation(await with_busy(pool, snapshot), tokens, sifted)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a comparison was asked for, as far as it decides whose an instance is."""

    patterns: Sequence[str]
    keep: Keep | None
    forgotten: Sequence[ForgottenSaga]


async def _attributed(
    pool: Pool, services: Services, sifted: Sifted, wish: _Wish
) -> tuple[Snapshot, Mapping[str, str]]:
    """The snapshot of what was kept, and the instances' tokens."""
    # A row that changed its server meanwhile was read on both: its newest state counts.
    read: dict[UUID, Row] = {}
    for row in newest_first(row for kept in sifted.rows.values() for row in kept):
        read.setdefault(row.id, row)
    rows = list(read.values())
    listing = await asyncio.to_thread(merge, sifted.lists, rows)
    named = {one: NOT_CONFIGURED for one in await servers_named(pool) if one not in sifted.lists}
    listing = replace(listing, unseen={**named, **listing.unseen})
    snapshot = await attribute_owners(pool, services.keys, listing, rows, wish.forgotten)
    if wish.patterns:
        wanted = wish.keep.organization_id if wish.keep else None
        snapshot = replace(snapshot, older=await _older(pool, snapshot, wish.patterns, wanted))
    agreed = sifted.agreed
    snapshot = replace(
        snapshot,
        beyond={server: (one.expected, 0) for server, one in agreed.items()},
        ours_beyond=sum(one.there for one in agreed.values()),
    )
    return _given(snapshot, wish.keep), listing.tokens


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
    strange = sorted({*found.values()})
    known, clinics = await organizations_of(pool, strange) if strange else (set(), {})
    known |= {wanted} if wanted else set()
    known |= {row["organization_id"] for row in await pool.fetch(_ORGANIZATIONS, strange)}
    return found | legacy_names.by_organization(found, known, clinics)


# --- Redis ------------------------------------------------------------------------------------


async def _wrong_keys(pool: Pool, redis: Redis) -> list[Key]:
    """The routing keys that do not say what their rows do, of each master of a cluster."""
    found: list[Key] = []
    try:
        async for read in keys_of(redis):
            # No row can have a NUL, and Postgres takes none in a question or a note either.
            page = [one for one in read if "\0" not in one.instance_name]
            rows = await rows_by(pool, names={one.instance_name for one in page})
            named = Snapshot(rows=newest_first(rows)).named()
            found += [one for one in page if not _agrees(one, named.get(one.instance_name))]
    except RedisError as error:
        said = f"Redis does not answer ({reason(error)})"
        cure = "is it running, and is EVOSAGA_REDIS_URL right?"
        raise ObservationFailed(f"{said}: {cure}") from error
    return found


async def keys_of(redis: Redis) -> AsyncIterator[list[Key]]:
    """All routing keys, about so many as one SCAN gives at a time."""
    for master in await masters(redis):
        cursor = 0
        while True:
            cursor, page = await master.scan(cursor, match=routing_key.key("*"), count=_PAGE)
            if page:
                pipeline = redis.pipeline(transaction=False)
                for key in page:
                    pipeline.get(key)
                    pipeline.pttl(key)
                told = await pipeline.execute(raise_on_error=False)
                yield [_key(*one) for one in zip(page, told[::2], told[1::2], strict=True)]
            if not cursor:
                break


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


_ORGANIZATIONS: Final = """
SELECT DISTINCT organization_id FROM evosaga.sagas WHERE organization_id = ANY($1)
"""
