"""Alerts about integrations that have been disconnected for long."""

import uuid
from collections.abc import Sequence
from typing import Any, Final

import structlog

from evosaga.events.alerts import open_now
from evosaga.events.database import Connection
from evosaga.orchestrator.config.receivers import PHONES
from evosaga.orchestrator.maintenance.alerts import outbox
from evosaga.orchestrator.whatsapp.conditions import disconnected
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, Judgement
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row

_logger = structlog.get_logger("evosaga.health")
_SHOWN: Final = 100
_TYPE: Final = "integration.alert"


async def record(
    connection: Connection, alarming: Sequence[tuple[Row, Judgement]], posts: bool
) -> None:
    """Open their alerts in the caller's transaction.

    ``posts``: one message for all of them goes to EVOSAGA_ALERT_URL, in the form that it has had
    since it was there.
    """
    states = {judged.record.state: row for row, judged in alarming}
    await open_now(
        connection,
        [disconnected(state, row.id, row.instance_name) for state, row in states.items()],
    )
    if posts:
        told = [_alert(row, judged) for row, judged in alarming]
        body = {"type": _TYPE, "count": len(told), "alerts": told[:_SHOWN]}
        await outbox.queue(connection, PHONES, f"phones_{uuid.uuid4()}", _TYPE, body)


def log(alarming: Sequence[tuple[Row, Judgement]]) -> None:
    """A line each."""
    for row, judged in alarming:
        _logger.warning("integration disconnected for long", **_alert(row, judged))


def _alert(row: Row, judged: Judgement) -> dict[str, Any]:
    """No phone number, no name of a clinic: ids, and what to do."""
    record = judged.record
    return {
        "integration_id": str(row.id),
        "organization_id": str(row.organization_id),
        "instance_name": row.instance_name,
        "state": record.state,
        "since": record.since.isoformat(),
        "reason": record.reason,
        "cure": CURES[record.state],
    }
