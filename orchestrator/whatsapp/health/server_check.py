"""The health check of one Evolution server: its list, its rows in pages, and what came of it.

Memory grows with what the server lists, about 400 bytes an instance, and not with the table.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.health import alerts, store
from evosaga.orchestrator.whatsapp.health.connection_state import Judgement, Record, next_state
from evosaga.orchestrator.whatsapp.health.reconnect import reconnect
from evosaga.orchestrator.whatsapp.health.selection import Selection, Sight, in_turn
from evosaga.orchestrator.whatsapp.integrations.rows import rows_on
from evosaga.orchestrator.whatsapp.reconciliation import incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.classify import found
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    Listing,
    instance_of,
    instances_on,
)
from evosaga.orchestrator.whatsapp.reconciliation.owners import attribute_owners, with_busy
from evosaga.orchestrator.whatsapp.reconciliation.plausibility import implausibility
from evosaga.orchestrator.whatsapp.reconciliation.probes import ask
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row, Snapshot
from evosaga.sagas.whatsapp.evolution.completeness import Missing
from evosaga.sagas.whatsapp.evolution.models import InstanceList
from evosaga.sagas.whatsapp.services import Services


@dataclass(frozen=True, slots=True)
class HealthMonitor:
    """What the health check needs. Seconds. ``posts_alerts``: EVOSAGA_ALERT_URL is set."""

    pool: Pool
    services: Services
    alert_after: float = 900.0
    posts_alerts: bool = False
    every: float = 60.0
    """Between two rounds."""


@dataclass(frozen=True, slots=True)
class CheckedIntegration:
    """One integration and its judgement; None when it is unknown, or a saga is at work for it."""

    row: Row
    judgement: Judgement | None


@dataclass(frozen=True, slots=True)
class Thoroughness:
    """How closely to look. ``eager``: one look is enough and nothing waits.

    ``webhooks``: of so many who are not asked about by name too; None: of all. ``turns``: those
    that look well and are asked about; None: as many as their number asks for.
    """

    eager: bool = False
    webhooks: int | None = 0
    turns: int | None = None

    @property
    def everybody(self) -> bool:
        """Whether each integration is to be told of one by one."""
        return self.eager or self.webhooks != 0 or self.turns == 0


@dataclass(slots=True)
class ServerLook:
    """What a look at one server found. Nothing is changed yet."""

    states: Counter[str] = field(default_factory=Counter)
    patients: list[CheckedIntegration] = field(default_factory=list)
    """Every integration, where each is to be told of; else those that were asked about."""
    news: list[tuple[Row, Judgement]] = field(default_factory=list)
    due: list[tuple[Row, Record]] = field(default_factory=list)
    """Those that may be connected again."""
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    asked: int = 0
    webhooks: int = 0


async def look_at(
    monitor: HealthMonitor, server: str, how: Thoroughness, now: datetime
) -> ServerLook | str:
    """What is so on that server; a text is the reason why nothing can be concluded."""
    listed = await instances_on(monitor.services.server(server))
    if isinstance(listed, str):
        return listed
    places = await asyncio.to_thread(listed.places)
    turns = in_turn(len(listed), monitor.every) if how.turns is None else how.turns
    selection = Selection(now, monitor.alert_after, turns, how.everybody)
    async for rows in rows_on(monitor.pool, server):
        page = await _page(monitor, server, listed, places, rows)
        known = await store.read(monitor.pool, [row.id for row in rows])
        selection.take(page, known)
        await asyncio.sleep(0)
    asked = selection.asked()
    snapshot = _snapshot(server, selection, asked)
    tokens = {
        one.instance.name: listed.at(places[one.instance.name]).token or ""
        for one in (*asked, *selection.rest)
        if one.instance is not None
    }
    names = [one.row.instance_name for one in asked]
    memory = await ask(monitor.pool, monitor.services, snapshot, tokens, names)
    snapshot = snapshot.asked(memory)
    if (doubt := implausibility(snapshot, server)) is not None:
        return doubt
    rest = [one.row.instance_name for one in selection.rest][: how.webhooks]
    lacks = await incomplete_instances.look(
        monitor.pool, monitor.services, snapshot, {*names, *rest}
    )
    return await asyncio.to_thread(
        _judged, monitor, selection, [*asked, *selection.rest], snapshot, lacks, how, tokens
    )


async def act(
    monitor: HealthMonitor, look: ServerLook, now: datetime, may_go_on: Callable[[], bool]
) -> tuple[int, int, int]:
    """Let rows follow, connect what may be: rows changed, reconnects, and alerts."""
    changed, told = await store.write(monitor.pool, look.news, monitor.posts_alerts)
    alerts.log(told)
    reconnects = await reconnect(
        monitor.pool, monitor.services, look.due, look.tokens, now, may_go_on
    )
    return changed, reconnects, len(told)


async def _page(
    monitor: HealthMonitor,
    server: str,
    listed: InstanceList,
    places: Mapping[str, int],
    rows: Sequence[Row],
) -> Snapshot:
    here = [listed.at(at) for row in rows if (at := places.get(row.instance_name)) is not None]
    listing = Listing(
        {one.name: instance_of(one, server) for one in here},
        {one.name: one.token or "" for one in here},
    )
    snapshot = await attribute_owners(monitor.pool, monitor.services.keys, listing, rows)
    return await with_busy(monitor.pool, snapshot, rows)


def _snapshot(server: str, selection: Selection, asked: Sequence[Sight]) -> Snapshot:
    """Of those that are asked about, and of all where each is to be told of."""
    kept = [*asked, *selection.rest]
    alone = Snapshot(
        instances={one.instance.name: one.instance for one in kept if one.instance is not None},
        rows=[one.row for one in kept],
    )
    should = sum(_should(one.row) for one in kept)
    missing = sum(_should(one.row) for one in kept if one.instance is None)
    beyond = (selection.should - should, selection.missing - missing)
    return replace(alone, beyond={server: beyond})


def _should(row: Row) -> bool:
    return row.flag not in ("missing", "foreign")


def _judged(
    monitor: HealthMonitor,
    selection: Selection,
    kept: Sequence[Sight],
    snapshot: Snapshot,
    lacks: Mapping[str, Missing],
    how: Thoroughness,
    tokens: Mapping[str, str],
) -> ServerLook:
    look = ServerLook(
        states=selection.states,
        patients=[CheckedIntegration(row, None) for row in selection.unknown],
        news=[(one.row, one.judgement) for one in selection.new if one.judgement],
        tokens=tokens,
        asked=len(snapshot.memory),
        webhooks=len(lacks),
    )
    for sight in kept:
        row, name = sight.row, sight.row.instance_name
        missing = lacks.get(name)
        whole = False if sight.lacks_settings else missing.said is None if missing else None
        one, judgement = found(snapshot, name, row), None
        # What is missing in the list and was not asked for by name is not known to be gone.
        if one.instance is not None or one.memory is not None:
            judgement = next_state(
                one,
                sight.record,
                selection.now,
                alert_after=monitor.alert_after,
                eager=how.eager,
                whole=whole,
            )
        look.patients.append(CheckedIntegration(row, judgement))
        look.states[judgement.record.state if judgement else "unknown"] += 1
        if judgement is None:
            continue
        if name in snapshot.memory or sight.record is None or whole is False:
            look.news.append((row, judgement))
        if judgement.reconnect:
            look.due.append((row, judgement.record))
    return look
