"""The verb ``health``: how every integration is connected, and reconnecting what can be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, UNREACHABLE, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.reconcile import quiet
from evosaga.orchestrator.cli.reconcile_report import tell_unseen
from evosaga.orchestrator.cli.run import require

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.health.monitor import (
        CheckedIntegration,
        HealthMonitor,
        HealthReport,
    )

_FEW: Final = 40
_COMES_BACK: Final = 15.0
"""Seconds that a connection may take to come back before it counts as still down."""


def health(
    *,
    fix: bool = False,
    out: params.Out,
) -> int:
    """Look at all of them, and with ``--fix`` do what can be done.

    Args:
        fix: let rows follow what was seen, and connect again what can be
    """
    require(out)
    with connections.servers(out) as settings:
        quiet(settings, out)
        return asyncio.run(_health(settings, fix, out))


async def _health(settings: Settings, fix: bool, out: Output) -> int:
    from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, examine, run_once
    from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
    from evosaga.orchestrator.whatsapp.services import open_services

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        outside = await stack.enter_async_context(open_services(settings, pool, redis))
        doctor = HealthMonitor(pool, outside, settings.alert_after, settings.alert_url is not None)
        try:
            if fix:
                done = await run_once(doctor, eager=True)
                if done.aborted is not None:
                    raise ObservationFailed(done.aborted)
                if done.reconnects:
                    await _until_back(doctor)
                done = await run_once(doctor, eager=True)
            else:
                done = await examine(doctor, eager=True)
        except ObservationFailed as reason:
            raise CliError(UNREACHABLE, f"nothing was changed: {reason}") from reason
    return _tell(done, out)


async def _until_back(doctor: HealthMonitor) -> None:
    """Give Evolution time to connect what it was asked to connect."""
    from evosaga.orchestrator.whatsapp.health.monitor import examine

    deadline = time.monotonic() + _COMES_BACK
    while time.monotonic() < deadline:
        seen = await examine(doctor, webhooks=0)
        states = {p.judgement.record.state for p in seen.patients if p.judgement}
        if not states & {"down", "connecting"}:
            return
        await asyncio.sleep(0.5)


def _tell(done: HealthReport, out: Output) -> int:
    told = [_described(patient) for patient in done.patients]
    ill = [one for one in told if not one["well"]]
    code = UNREACHABLE if done.unseen else UNFINISHED if ill else DONE
    if out.json:
        out.data({"integrations": told, "summary": done.summary()})
        return code
    tell_unseen(done.unseen, out)
    tell_connections(told, done.summary()["states"], out)
    return code


def tell_connections(
    told: Sequence[Mapping[str, Any]], states: Mapping[str, int], out: Output
) -> None:
    """Each integration, or only those that are not well where there are many; then all counted."""
    ill = [one for one in told if not one["well"]]
    shown = sorted(
        told if len(told) <= _FEW else ill, key=lambda one: (one["well"], one["instance"])
    )
    out.table(
        [{n: str(v or "") for n, v in one.items() if n not in ("well", "id")} for one in shown],
        wrap=("cure",),
    )
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    number = "1 integration" if len(told) == 1 else f"{len(told)} integrations"
    out.line(f"{number}: {counts}" if told else "there are no integrations")


def _described(patient: CheckedIntegration) -> dict[str, Any]:
    from evosaga.orchestrator.whatsapp.health.connection_state import CURES, WELL
    from evosaga.sagas.whatsapp.types import CANT_BE_HANDLED, unaddressable

    row, judged = patient.row, patient.judgement
    told: dict[str, Any] = {
        "instance": row.instance_name,
        "organization": str(row.organization_id),
        "id": str(row.id),
        "row": row.status,
    }
    if judged is None:
        cure = "a saga is at work for it, or Evolution gave no clear answer"
        if why := unaddressable(row.instance_name):
            cure = f"{CANT_BE_HANDLED} ({why})"
        return told | {"state": "unknown", "since": None, "cure": cure, "well": False}
    record = judged.record
    cure = CURES[record.state]
    if judged.status is not None and judged.status != row.status:
        cure = f"the row should say {judged.status}" + (f"; {cure}" if cure else "")
    return told | {
        "state": record.state,
        "since": record.since.isoformat(timespec="seconds"),
        "cure": cure,
        "well": record.state in WELL and judged.status is None,
    }
