"""A test message to a receiver, sent at once and by whoever asks for it."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from evosaga.orchestrator.maintenance.alerts.dispatcher import Posting
from evosaga.orchestrator.maintenance.alerts.messages import TEST
from evosaga.orchestrator.maintenance.alerts.sending import Answer


async def send_test(posting: Posting, name: str) -> Answer:
    """Send it, once; the answer."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    id_ = f"test_{uuid.uuid4()}"
    alert: dict[str, Any] = {
        "id": id_,
        "key": "test",
        "code": "test",
        "reason": None,
        "severity": "warning",
        "status": "firing",
        "message": "this is a test of evosaga's alerts; nothing is wrong",
        "cure": "",
        "count": 1,
        "opened_at": now,
        "announced_at": now,
        "resolved_at": None,
        "runbook": posting.runbook,
        "details": {},
    }
    body = {"type": TEST, "timestamp": now, "data": alert}
    return await posting.send(name, id_, TEST, json.dumps(body))
