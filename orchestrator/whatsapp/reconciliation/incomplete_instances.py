"""Instances that are there and not whole: without their webhook, with another one, or without
settings. That goes unnoticed otherwise: such an instance works and delivers no event.

Settings stand in Evolution's list. A webhook has to be asked for, one call an instance: a few at a
time on each server, and by the schedule only a share of them a round, those first that were seen to
lack something, then those that the health check has not asked about for longest. It asks for the
webhooks of all that it asks about by name, so with it running each has its turn.

Only what is ours by birthmark is looked at, next to what its row and its create's command say.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.reconciliation.classify import can_be_sent
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
from evosaga.orchestrator.whatsapp.reconciliation.repair_commands import RepairCommand
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row, Snapshot
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS
from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.evolution.completeness import Missing, webhook_of
from evosaga.sagas.whatsapp.evolution.pacing import Pace
from evosaga.sagas.whatsapp.ownership import UnknownKey
from evosaga.sagas.whatsapp.repairs.completeness import CreateFacts, create_facts
from evosaga.sagas.whatsapp.services import Services

KINDS: Final = ("webhook_missing", "webhook_wrong", "settings_missing")
STATE: Final = "incomplete"
"""What the health check calls it."""
SHARE: Final = 500
"""Webhooks that a round of the schedule asks for."""
_AT_ONCE: Final = 8
_PAGE: Final = 256
_NO_WEBHOOK: Final = "it has no webhook"
_NO_SETTINGS: Final = "it has no settings"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose webhooks to ask for. ``suspects``: only of those that were seen to lack something."""

    organization_id: UUID | None = None
    suspects: bool = False
    share: int | None = None


async def suspects(pool: Pool) -> set[str]:
    """The instances that were seen to lack something."""
    return {row["instance_name"] for row in await pool.fetch(_SEEN, list(KINDS))}


async def drifts(
    pool: Pool,
    services: Services,
    snapshot: Snapshot,
    scope: Scope,
    paces: dict[str, Pace] | None = None,
) -> list[Drift]:
    """What is incomplete, each with its repair. ``paces``: where this is one page of several."""
    ours = _candidates(snapshot, scope.organization_id)
    rows = ours
    if scope.share is not None:
        rows = (await _in_turn(pool, ours, only_suspects=scope.suspects))[: scope.share]
    lacks = {
        row.id: Missing(settings=_settings(snapshot, row)) for row in ours
    }  # so much is listed
    found = await look(pool, services, snapshot, [row.instance_name for row in rows], paces)
    lacks |= {row.id: found[row.instance_name] for row in rows if row.instance_name in found}
    return [_drift(row, lacks[row.id]) for row in ours if lacks[row.id].said]


async def look(
    pool: Pool,
    services: Services,
    snapshot: Snapshot,
    names: Collection[str],
    paces: dict[str, Pace] | None = None,
) -> dict[str, Missing]:
    """What these lack, as far as they are ours and give an answer."""
    wanted = set(names)
    rows = {r.id: r for r in _candidates(snapshot) if r.instance_name in wanted}
    known = await create_facts(pool, list(rows)) if rows else {}
    groups: dict[str, list[CreateFacts]] = {}
    for one in known.values():
        groups.setdefault(one.server, []).append(one)
    answers = await asyncio.gather(
        *(
            _ask_server(services, server, group, _pace(services, server, paces))
            for server, group in groups.items()
        )
    )
    found: dict[str, Missing] = {}
    for id_, webhook in (pair for group in answers for pair in group.items()):
        settings = _settings(snapshot, rows[id_])
        found[rows[id_].instance_name] = Missing(webhook, settings)
    return found


def settings_missing(snapshot: Snapshot, name: str) -> bool:
    """Whether the list says that it has none."""
    instance = snapshot.instances.get(name)
    return instance is not None and not instance.settings


def _settings(snapshot: Snapshot, row: Row) -> str | None:
    return _NO_SETTINGS if settings_missing(snapshot, row.instance_name) else None


def _candidates(snapshot: Snapshot, organization_id: UUID | None = None) -> list[Row]:
    """Rows whose instance is ours and there, and that no saga is at work for."""
    found = []
    for name, row in snapshot.named().items():
        instance = snapshot.instances.get(name)
        free = not (
            name in snapshot.busy_names or row.organization_id in snapshot.busy_organizations
        )
        there = instance is not None and instance.made_by == row.id and row.born
        there = there and snapshot.memory.get(name) in (None, "open", "connecting", "close")
        used = row.enabled and row.status != "deleting" and can_be_sent(name)
        if used and there and free and organization_id in (None, row.organization_id):
            found.append(row)
    return found


async def _in_turn(pool: Pool, rows: Sequence[Row], *, only_suspects: bool) -> list[Row]:
    """What was seen to lack something first, then the longest unasked."""
    seen = await suspects(pool)
    suspected = [row for row in rows if row.flag == STATE or row.instance_name in seen]
    if only_suspects:
        return suspected
    ids = [row.id for row in rows]
    asked = {row["integration_id"]: row["at"] for row in await pool.fetch(_ASKED, ids)}
    first = {row.id for row in suspected}
    others = [row for row in rows if row.id not in first]
    return [*suspected, *sorted(others, key=lambda row: asked.get(row.id, 0.0))]


def _pace(services: Services, server: str, paces: dict[str, Pace] | None) -> Pace:
    fresh = Pace(services.maintenance_rate)
    return fresh if paces is None else paces.setdefault(server, fresh)


async def _ask_server(
    services: Services, server: str, group: Sequence[CreateFacts], pace: Pace
) -> dict[UUID, str | None]:
    """What their webhooks lack; of those that give no clear answer, nothing.

    A server that is in trouble is asked no further: the next round will tell.
    """
    evolution, limit = services.server(server), asyncio.Semaphore(_AT_ONCE)
    stop = asyncio.Event()

    async def one(about: CreateFacts) -> tuple[str | None, Answer | None] | None:
        async with limit:
            if stop.is_set():
                return None
            try:
                wish = about.wish(services.keys)
            except UnknownKey:
                return None
            if wish.webhook is None:
                return None, None
            lacks, unclear = await webhook_of(
                evolution, wish.name, wish.token, wish.webhook, wish.tokens
            )
            if unclear is not None and (unclear.status == 0 or unclear.status >= 500):
                stop.set()
            return lacks, unclear

    found: dict[UUID, str | None] = {}
    for page in (group[at : at + _PAGE] for at in range(0, len(group), _PAGE)):
        await pace.page(len(page))
        answers = await asyncio.gather(*(one(about) for about in page))
        for about, answer in zip(page, answers, strict=True):
            if answer is not None and answer[1] is None:
                found[about.id] = answer[0]
    return found


def _drift(row: Row, lacks: Missing) -> Drift:
    code = (
        "settings_missing"
        if lacks.webhook is None
        else "webhook_missing"
        if lacks.webhook == _NO_WEBHOOK
        else "webhook_wrong"
    )
    verdict = VERDICTS[code]
    data: Mapping[str, str] = {
        "integration_id": str(row.id),
        "instance_name": row.instance_name,
    }
    return Drift(
        code,
        row.instance_name,
        row.organization_id,
        verdict.cause.format(lacks=lacks.said),
        verdict.repair,
        verdict.policy,
        RepairCommand("instance.complete", data),
        (row.server,),
    )


_SEEN: Final = "SELECT DISTINCT instance_name FROM evosaga.sightings WHERE what = ANY($1)"
_ASKED: Final = """
SELECT integration_id, extract(epoch FROM checked_at)::float8 AS at FROM evosaga.connections
WHERE checked_at IS NOT NULL AND integration_id = ANY($1)
"""
