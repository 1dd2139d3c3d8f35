"""The first part of a comparison of everything: what may have drifted, out of very many.

Server by server, each row is put beside the element of the server's list that it names. Where the
two agree, no other row and no other instance of theirs is in sight, they are packed away
(``agreed``), and all the rest is kept. So memory grows with what has drifted and with the largest
list, and not with the table.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from evosaga.events import background
from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.integrations.rows import ScannedRow, rows_by, scan
from evosaga.orchestrator.whatsapp.integrations.smallest import Smallest
from evosaga.orchestrator.whatsapp.reconciliation import incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.agreed import Agreed, fits
from evosaga.orchestrator.whatsapp.reconciliation.classify import classify
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    Listing,
    OneList,
    instance_of,
    instances_on,
    refuse_blindness,
)
from evosaga.orchestrator.whatsapp.reconciliation.owners import attribute_owners, with_busy
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import expected
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row, Snapshot
from evosaga.sagas.whatsapp.evolution.models import InstanceList
from evosaga.sagas.whatsapp.services import Services

_AT_ONCE: Final = 3
"""Servers whose lists are in memory at the same time: one that hangs holds up no other."""
_LATER: Final = 1e11
"""More than any time in seconds: these come after all others."""
_PAGE: Final = 250
ASKED: Final = 1000
"""Instances that look well and are asked by name all the same, a comparison of everything."""


@dataclass(slots=True)
class Sifted:
    """What is left, by server, and what was packed away."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    lists: dict[str, OneList | str] = field(default_factory=dict)
    """A text is the reason why there is no list."""
    agreed: dict[str, Agreed] = field(default_factory=dict)


@dataclass(slots=True)
class _Scan:
    """Of one server."""

    server: str
    listed: InstanceList
    places: dict[str, int]
    """Of what no row has named so far."""
    kept: list[Row] = field(default_factory=list)
    instances: OneList = field(default_factory=lambda: OneList({}, {}))
    agreed: Agreed = field(default_factory=Agreed)


class Sieve:
    """Keeps what may have drifted, and of what agrees those that are asked about all the same."""

    def __init__(
        self,
        pool: Pool,
        services: Services,
        kept: Collection[str] = (),
        *,
        share: int = 0,
        asked: int = 0,
    ) -> None:
        """``kept``: names that are looked at in any case, and of all others ``share`` whose
        webhooks were not asked for longest, and ``asked``, those first that are not connected.
        """
        self._pool = pool
        self._services = services
        self._kept = frozenset(kept)
        self._asked: Smallest[tuple[str, Row]] = Smallest(asked)
        self._share: Smallest[tuple[str, Row]] = Smallest(share)

    async def run(self) -> Sifted:
        """Look at each server, a few at the same time. Raises ``ObservationFailed``."""
        sifted = Sifted()
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(server: str) -> None:
            async with places:
                sifted.lists[server] = await self._server(server, sifted)

        names = list(self._services.servers)
        await background.each(one(server) for server in names)
        sifted.lists = {name: sifted.lists[name] for name in names}
        unseen = {name: told for name, told in sifted.lists.items() if isinstance(told, str)}
        refuse_blindness(sifted.lists, unseen)
        await self._take_samples(sifted)
        return sifted

    async def _server(self, server: str, sifted: Sifted) -> OneList | str:
        listed = await instances_on(self._services.server(server))
        if isinstance(listed, str):
            return listed
        found = _Scan(server, listed, await asyncio.to_thread(listed.places))
        async for page in scan(self._pool, server):
            await self._page(found, page)
            await asyncio.sleep(0)
        for number, at in enumerate(found.places.values()):  # what no row on this server names
            if number % _PAGE == 0:
                await asyncio.sleep(0)
            one = listed.at(at)
            found.instances.put(instance_of(one, server), one.token or "")
        sifted.rows[server], sifted.agreed[server] = found.kept, found.agreed
        return found.instances

    async def _page(self, found: _Scan, page: Sequence[ScannedRow]) -> None:
        rows = [one.row for one in page]
        at = {row.instance_name: found.places.get(row.instance_name) for row in rows}
        here = [found.listed.at(place) for place in at.values() if place is not None]
        listing = Listing(
            {one.name: instance_of(one, found.server) for one in here},
            {one.name: one.token or "" for one in here},
        )
        owned = await attribute_owners(self._pool, self._services.keys, listing, rows)
        snapshot = await with_busy(self._pool, owned, rows)
        drifted = classify(snapshot).verdicts
        for one in page:
            name = one.row.instance_name
            instance = snapshot.instances.get(name)
            agrees = one.alone and name not in drifted and name not in self._kept
            whole = one.row.flag != incomplete_instances.STATE and fits(one.row, instance)
            if not (agrees and whole):
                found.kept.append(one.row)
                continue
            found.agreed.put(one.row, instance, expected=expected(snapshot, one.row))
            found.places.pop(name, None)
            if instance is not None and one.row.enabled and not _busy(snapshot, one.row):
                self._offer(found.server, one)

    def _offer(self, server: str, one: ScannedRow) -> None:
        row = one.row
        age = -row.updated_at.timestamp() if row.updated_at else 0.0
        self._asked.offer(age + (_LATER if row.status == "connected" else 0.0), (server, row))
        if row.status != "deleting":
            self._share.offer(one.checked or age, (server, row))

    async def _take_samples(self, sifted: Sifted) -> None:
        """Keep those, as if something were to be said of them."""
        every = (*self._asked.in_order(), *self._share.in_order())
        samples = {row.id: (server, row) for server, row in every}
        for number, (server, row) in enumerate(samples.values()):
            if number % _PAGE == 0:  # the token of each is computed anew
                await asyncio.sleep(0)
            restore(sifted, server, row, self._services)


def restore(sifted: Sifted, server: str, row: Row, services: Services) -> None:
    """Look at a row like at any other that may have drifted; its instance was packed away."""
    agreed, listed = sifted.agreed.get(server), sifted.lists.get(server)
    kept = sifted.rows.setdefault(server, [])
    kept.append(row)
    if agreed is None or isinstance(listed, str) or listed is None:
        return
    instance = agreed.take(row, services.keys)
    if instance is not None and instance.key_id is not None:
        token = services.keys.instance_token(row.id, instance.key_id)
        listed.put(instance, token)


def listed_names(told: OneList | str) -> Collection[str]:
    """The names that are kept of a list."""
    return () if isinstance(told, str) else told.instances.keys()


def fetch_back(services: Services, sifted: Sifted, found: Sequence[Row]) -> None:
    """The same for what else turns out to matter, unless it is kept already."""
    known = {row.id for rows in sifted.rows.values() for row in rows}
    for row in found:
        if row.id not in known:
            known.add(row.id)
            restore(sifted, row.server, row, services)


async def agreeing(
    pool: Pool, services: Services, sifted: Sifted, but: Mapping[str, str]
) -> AsyncIterator[Snapshot]:
    """What was packed away and not fetched back, in pages, without these servers."""
    for server, agreed in sifted.agreed.items():
        if server in but:
            continue
        for ids in agreed.pages(_PAGE):
            rows = await rows_by(pool, ids=ids)
            instances = agreed.instances(rows, services.keys)
            yield await with_busy(pool, Snapshot(instances=instances, rows=rows), rows)


def _busy(snapshot: Snapshot, row: Row) -> bool:
    return (
        row.instance_name in snapshot.busy_names
        or row.organization_id in snapshot.busy_organizations
    )
