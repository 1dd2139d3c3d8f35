"""Alerts by HTTP about integrations that have been disconnected for long."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import httpx
import structlog

from evosaga.events.connection_errors import reason
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, Judgement
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row

_logger = structlog.get_logger("evosaga.health")
_TRIES: Final = 3
_TIMEOUT: Final = 5.0
_SHOWN: Final = 100


async def send(url: str | None, alerts: Sequence[tuple[Row, Judgement]]) -> None:
    """A log line each, and one message to the webhook for all of them.

    The event ``integration.alert`` is what can be relied on; this is quick and may be lost.
    """
    if not alerts:
        return
    told = [_alert(row, judged) for row, judged in alerts]
    for one in told:
        _logger.warning("integration disconnected for long", **one)
    if url is not None:
        await _post(url, {"type": "integration.alert", "count": len(told), "alerts": told[:_SHOWN]})


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


async def _post(url: str, body: dict[str, Any]) -> None:
    trouble = ""
    for left in reversed(range(_TRIES)):
        try:
            # Its own client: what posts to strangers shares nothing with what knows our keys.
            async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT) as client:
                answer = await client.post(url, json=body)
            if answer.is_success:
                return
            trouble = f"HTTP {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            trouble = reason(error)
        if left:
            await asyncio.sleep(1.0)
    # The URL stays out of the log: it is enough to post there.
    _logger.warning("the alert could not be delivered", reason=trouble, alerts=body["count"])
