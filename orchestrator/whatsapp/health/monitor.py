"""Health check: how each integration is connected, with one list call a server and round.

Only what looks wrong in the list is asked about by name, and a share of the others in turn, since
the list is Evolution's database and may believe in a connection that its memory has lost. Rows
follow, what may be reconnected is, a few at a time, and no saga is disturbed.

A round looks at one server after the other, a few at the same time, and keeps of each no more than
its list and a page of its rows.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog

from evosaga.events import background
from evosaga.orchestrator.whatsapp.health import store
from evosaga.orchestrator.whatsapp.health.server_check import (
    CheckedIntegration,
    HealthMonitor,
    ServerLook,
    Thoroughness,
    act,
    look_at,
)
from evosaga.orchestrator.whatsapp.integrations.rows import number_on, servers_named
from evosaga.orchestrator.whatsapp.reconciliation.inventory import (
    NOT_CONFIGURED,
    ObservationFailed,
    refuse_blindness,
    unreachable,
)

__all__ = ["CheckedIntegration", "HealthMonitor", "HealthReport", "examine", "run_once"]

_logger = structlog.get_logger("evosaga.health")
_AT_ONCE: Final = 3
"""Servers that are looked at at the same time: one that hangs holds up no round."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What one round found and did."""

    patients: Sequence[CheckedIntegration] = ()
    """Every integration, where a person asked; else those that were asked about."""
    states: Mapping[str, int] = field(default_factory=dict)
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
        return {
            "integrations": sum(self.states.values()),
            "states": dict(self.states),
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
class _Round:
    """What is found on the way."""

    states: Counter[str] = field(default_factory=Counter)
    patients: list[CheckedIntegration] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    aborted: str | None = None

    def add(self, look: ServerLook, how: Thoroughness) -> None:
        self.states += look.states
        self.done += Counter(asked=look.asked, webhooks=look.webhooks)
        if how.everybody:
            self.patients += look.patients

    def report(self, began: float) -> HealthReport:
        return HealthReport(
            self.patients,
            dict(self.states),
            aborted=self.aborted,
            seconds=time.monotonic() - began,
            unseen=self.unseen,
            **{name: self.done[name] for name in _COUNTED},
        )


_COUNTED: Final = ("asked", "changed", "reconnects", "alerts", "webhooks")


async def examine(
    doctor: HealthMonitor, *, eager: bool = False, webhooks: int | None = None
) -> HealthReport:
    """Look and judge; nothing is changed. Raises ``ObservationFailed``.

    ``webhooks``: so many are asked for on each server; None: all, since a person wants to know.
    """
    began, found = time.monotonic(), _Round()
    how = Thoroughness(eager, webhooks, turns=0)
    await _look_around(doctor, how, found, None, None)
    return found.report(began)


async def run_once(
    doctor: HealthMonitor,
    *,
    eager: bool = False,
    may_go_on: Callable[[], bool] = lambda: True,
    only: Sequence[str] | None = None,
) -> HealthReport:
    """One round: rows follow, what may be reconnected is, and what lasts is reported.

    ``only``: of these servers, since other workers look at the others.
    """
    began, found = time.monotonic(), _Round()
    how = Thoroughness(eager, None if eager else 0)
    try:
        await _look_around(doctor, how, found, may_go_on, only)
    except ObservationFailed as reason:
        _logger.warning("health_check_stopped", reason=str(reason))
        return HealthReport(aborted=str(reason), seconds=time.monotonic() - began)
    if only is None:
        await store.forget(doctor.pool)
    done = found.report(began)
    if done.unseen:
        _logger.warning("health_check_incomplete", reason=unreachable(done.unseen))
    news = done.changed or done.reconnects or done.alerts
    (_logger.info if news else _logger.debug)("health", **done.summary())
    return done


async def _look_around(
    doctor: HealthMonitor,
    how: Thoroughness,
    found: _Round,
    may_go_on: Callable[[], bool] | None,
    only: Sequence[str] | None,
) -> None:
    """Look at each server, and act unless ``may_go_on`` is None. Raises ``ObservationFailed``."""
    now: datetime = await doctor.pool.fetchval("SELECT now()")
    servers = list(doctor.services.servers) if only is None else only
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(server: str) -> None:
        async with places:
            look = await look_at(doctor, server, how, now)
            if isinstance(look, str):
                await _not_seen(doctor, found, server, look)
                return
            found.add(look, how)
            if may_go_on is None:
                return
            if not may_go_on():
                found.aborted = "another worker does it now"
                return
            changed, reconnects, alerts = await act(doctor, look, now, may_go_on)
            found.done += Counter(changed=changed, reconnects=reconnects, alerts=alerts)

    # One that fails ends the others: none goes on acting when its round is over.
    await background.each(one(server) for server in servers)
    refuse_blindness(dict.fromkeys(servers), found.unseen)
    if only is None:
        for server in await servers_named(doctor.pool):
            if server not in doctor.services.servers:
                await _not_seen(doctor, found, server, NOT_CONFIGURED)


async def _not_seen(doctor: HealthMonitor, found: _Round, server: str, why: str) -> None:
    found.unseen[server] = why
    found.states["unknown"] += await number_on(doctor.pool, server)
