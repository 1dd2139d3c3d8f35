"""Health check: how each integration is connected, with one list call a round.

Only what looks wrong in the list is asked about by name, and a few of the others in turn, since
the list is Evolution's database and may believe in a connection that its memory has lost. Rows
follow, what may be reconnected is, a few at a time, and no saga is disturbed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import structlog

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.health import alerts, store
from evosaga.orchestrator.whatsapp.health.connection_state import (
    WELL,
    Judgement,
    Record,
    next_state,
)
from evosaga.orchestrator.whatsapp.health.reconnect import reconnect
from evosaga.orchestrator.whatsapp.integrations.rows import rows_of
from evosaga.orchestrator.whatsapp.reconciliation import incomplete_instances
from evosaga.orchestrator.whatsapp.reconciliation.classify import Name, can_be_sent, found
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    ObservationFailed,
    listed,
    merge,
    unreachable,
)
from evosaga.orchestrator.whatsapp.reconciliation.observe import attribute_owners, with_busy
from evosaga.orchestrator.whatsapp.reconciliation.probes import ask, without_implausible
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row, Snapshot
from evosaga.sagas.whatsapp.evolution.completeness import Missing
from evosaga.sagas.whatsapp.services import Services

_logger = structlog.get_logger("evosaga.health")
_ASKED: Final = 500
_IN_TURN: Final = 20
"""Integrations that look well and are asked all the same, a round."""


@dataclass(frozen=True, slots=True)
class HealthMonitor:
    """What the health check needs. Seconds. ``posts_alerts``: EVOSAGA_ALERT_URL is set."""

    pool: Pool
    services: Services
    alert_after: float = 900.0
    posts_alerts: bool = False


@dataclass(frozen=True, slots=True)
class CheckedIntegration:
    """One integration and its judgement; None when it is unknown, or a saga is at work for it."""

    row: Row
    judgement: Judgement | None


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What one round found and did."""

    patients: Sequence[CheckedIntegration] = ()
    asked: int = 0
    changed: int = 0
    reconnects: int = 0
    alerts: int = 0
    aborted: str | None = None
    seconds: float = 0.0
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Evolution servers that could not be looked at, and why; nothing was concluded of them."""
    webhooks: int = 0
    """Integrations of which webhook and settings were looked at."""

    def summary(self) -> dict[str, Any]:
        """As the table of chores keeps it."""
        states = (p.judgement.record.state if p.judgement else "unknown" for p in self.patients)
        return {
            "integrations": len(self.patients),
            "states": dict(Counter(states)),
            "asked": self.asked,
            "webhooks": self.webhooks,
            "changed": self.changed,
            "reconnects": self.reconnects,
            "alerts": self.alerts,
            "aborted": self.aborted,
            "not_looked_at": unreachable(self.unseen),
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class _Look:
    """A round's findings on their way."""

    now: datetime
    snapshot: Snapshot
    tokens: Mapping[str, str]
    known: Mapping[UUID, Record]
    asked: frozenset[str] = field(default_factory=frozenset)
    lacks: Mapping[str, Missing] = field(default_factory=dict)
    """What instances lack whose webhook was asked for."""

    def whole(self, name: str) -> bool | None:
        """Whether webhook and settings are as they should be; None: unknown."""
        if incomplete_instances.settings_missing(self.snapshot, name):
            return False
        lacks = self.lacks.get(name)
        return lacks.said is None if lacks else None


async def examine(
    doctor: HealthMonitor, *, eager: bool = False, webhooks: int | None = None
) -> HealthReport:
    """Look and judge; nothing is changed. Raises ``ObservationFailed``.

    ``webhooks``: so many are asked for; None: all, since a person wants to know.
    """
    began = time.monotonic()
    look = await _look(doctor, in_turn=0, webhooks=webhooks)
    patients = await asyncio.to_thread(_patients, doctor, look, eager)
    seconds, unseen = time.monotonic() - began, look.snapshot.unseen
    return HealthReport(
        patients,
        asked=len(look.asked),
        seconds=seconds,
        unseen=unseen,
        webhooks=len(look.lacks),
    )


async def run_once(
    doctor: HealthMonitor, *, eager: bool = False, may_go_on: Callable[[], bool] = lambda: True
) -> HealthReport:
    """One round: rows follow, what may be reconnected is, and what lasts is reported."""
    began = time.monotonic()
    try:
        look = await _look(doctor, in_turn=_IN_TURN, webhooks=None if eager else 0)
    except ObservationFailed as reason:
        _logger.warning("health check gives up", reason=str(reason))
        return HealthReport(aborted=str(reason), seconds=time.monotonic() - began)
    patients = await asyncio.to_thread(_patients, doctor, look, eager)
    if not may_go_on():
        return HealthReport(patients, aborted="another worker does it now")
    news = [p for p in patients if p.judgement and _is_news(p, look)]
    judged = [(p.row, p.judgement) for p in news if p.judgement]
    changed = await store.write(doctor.pool, judged, doctor.posts_alerts)
    told = [(row, judgement) for row, judgement in judged if judgement.alert]
    alerts.log(told)
    due = [(p.row, p.judgement.record) for p in patients if p.judgement and p.judgement.reconnect]
    reconnects = await reconnect(
        doctor.pool, doctor.services, due, look.tokens, look.now, may_go_on
    )
    await store.forget(doctor.pool)
    done = HealthReport(
        patients,
        len(look.asked),
        changed,
        reconnects,
        len(told),
        None,
        time.monotonic() - began,
        look.snapshot.unseen,
        len(look.lacks),
    )
    if done.unseen:
        _logger.warning("health check is blind in part", reason=unreachable(done.unseen))
    (_logger.info if changed or reconnects or told else _logger.debug)("health", **done.summary())
    return done


async def _look(doctor: HealthMonitor, *, in_turn: int, webhooks: int | None) -> _Look:
    """``webhooks``: of so many who are not asked by name, too; None: of all."""
    lists = await listed(doctor.services)
    every = await rows_of(doctor.pool)
    listing = await asyncio.to_thread(merge, lists, every)
    rows = [row for row in every if row.enabled and row.status != "deleting"]
    snapshot = await attribute_owners(doctor.pool, doctor.services.keys, listing, rows)
    snapshot = await with_busy(doctor.pool, snapshot)
    now, known = await store.read(doctor.pool)
    look = _Look(now, snapshot, listing.tokens, known)
    names = await asyncio.to_thread(_suspects, doctor, look, in_turn)
    memory = await ask(doctor.pool, doctor.services, snapshot, listing.tokens, names)
    look.snapshot = without_implausible(doctor.services, snapshot.asked(memory))
    look.asked = frozenset(memory)
    others = [row.instance_name for row in _free(look.snapshot)][:webhooks]
    look.lacks = await incomplete_instances.look(
        doctor.pool, doctor.services, look.snapshot, {*names, *others}
    )
    return look


def _suspects(doctor: HealthMonitor, look: _Look, in_turn: int) -> list[str]:
    """The names to ask about: missing ones first, then what looks ill, then some of the others."""
    ill: list[Row] = []
    well: list[Row] = []
    for row in _free(look.snapshot):
        record = look.known.get(row.id)
        one = _name(look, row)
        whole = look.whole(row.instance_name)
        judgement = next_state(one, record, look.now, alert_after=doctor.alert_after, whole=whole)
        quiet = judgement is not None and _quiet(judgement, record)
        (well if quiet else ill).append(row)
    # The longest unasked first, so that a limit leaves none out for ever.
    shown = look.snapshot.instances
    ill.sort(key=lambda row: (row.instance_name in shown, _checked(look, row)))
    well.sort(key=lambda row: _checked(look, row))
    return [row.instance_name for row in (*ill[:_ASKED], *well[:in_turn])]


def _quiet(judgement: Judgement, record: Record | None) -> bool:
    """Whether the list shows nothing that has to be looked into."""
    news = record is not None and (record.state != judgement.record.state or record.reconnects)
    return judgement.record.state in WELL and judgement.status is None and not news


def _checked(look: _Look, row: Row) -> float:
    record = look.known.get(row.id)
    return record.checked_at.timestamp() if record and record.checked_at else 0.0


def _free(snapshot: Snapshot) -> list[Row]:
    """The rows that no saga is at work for, and that can be asked about."""
    return [
        row
        for row in snapshot.named().values()
        if row.instance_name not in snapshot.busy_names
        and row.organization_id not in snapshot.busy_organizations
        and can_be_sent(row.instance_name)
    ]


def _name(look: _Look, row: Row) -> Name:
    return found(look.snapshot, row.instance_name, row)


def _patients(doctor: HealthMonitor, look: _Look, eager: bool) -> list[CheckedIntegration]:
    free = {row.id for row in _free(look.snapshot)}
    patients = []
    for row in look.snapshot.named().values():
        judgement = None
        one = _name(look, row)
        # What is missing in the list and was not asked for by name is not known to be gone.
        if row.id in free and (one.instance is not None or one.memory is not None):
            judgement = next_state(
                one,
                look.known.get(row.id),
                look.now,
                alert_after=doctor.alert_after,
                eager=eager,
                whole=look.whole(row.instance_name),
            )
        patients.append(CheckedIntegration(row, judgement))
    return patients


def _is_news(patient: CheckedIntegration, look: _Look) -> bool:
    """Whether it has to be written down: asked for, or seen for the first time."""
    name = patient.row.instance_name
    return name in look.asked or patient.row.id not in look.known or look.whole(name) is False
