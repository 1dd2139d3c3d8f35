"""A health check that a person asked for: of all integrations, and with ``fix`` what can be done.

The command line draws it; the HTTP API answers with the same.
"""

import asyncio
import time
from typing import Any

from evosaga.orchestrator.whatsapp.health.connection_state import COMES_BACK, CURES, WELL
from evosaga.orchestrator.whatsapp.health.monitor import (
    CheckedIntegration,
    HealthMonitor,
    HealthReport,
    examine,
    run_once,
)
from evosaga.orchestrator.whatsapp.integrations.names import names_of_instances
from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
from evosaga.sagas.whatsapp.types import CANT_BE_HANDLED, unaddressable


class NotSeenAgain(Exception):
    """What can be done was done, and how the integrations are now is not known; the text says why.

    It begins a sentence, unlike that of ``ObservationFailed``, after which nothing was changed.
    """


async def fix(doctor: HealthMonitor) -> HealthReport:
    """Let rows follow, reconnect what can be, and look again.

    Raises ``ObservationFailed`` and ``NotSeenAgain``.
    """
    done = await run_once(doctor, eager=True)
    if done.aborted is not None:
        raise ObservationFailed(done.aborted)
    try:
        seen = [one.judgement.record for one in done.patients if one.judgement]
        if any(record.state == "down" and record.next_reconnect_at for record in seen):
            # Also where another process has asked Evolution.
            await _until_back(doctor)
        again = await run_once(doctor, eager=True)
        if again.aborted is not None:
            raise ObservationFailed(again.aborted)
    except ObservationFailed as why:
        said = f"{done.changed} rows were changed and {done.reconnects} connections asked for"
        raise NotSeenAgain(f"{said}; what came of it is not known: {why}") from why
    return again


async def _until_back(doctor: HealthMonitor) -> None:
    """Give Evolution time to connect what it was asked to connect."""
    deadline = time.monotonic() + COMES_BACK
    while time.monotonic() < deadline:
        seen = await examine(doctor, webhooks=0)
        states = {p.judgement.record.state for p in seen.patients if p.judgement}
        if not states & {"down", "connecting"}:
            return
        await asyncio.sleep(0.5)


async def document(doctor: HealthMonitor, done: HealthReport) -> dict[str, Any]:
    """For programs."""
    instances = [one.row.instance_name for one in done.patients]
    names = await names_of_instances(doctor.pool, instances, None)
    told = [_described(one, names.get(one.row.instance_name)) for one in done.patients]
    return {"integrations": told, "summary": done.summary()}


def _described(patient: CheckedIntegration, name: str | None) -> dict[str, Any]:
    row, judged = patient.row, patient.judgement
    told: dict[str, Any] = {
        "instance": row.instance_name,
        "name": name,
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
