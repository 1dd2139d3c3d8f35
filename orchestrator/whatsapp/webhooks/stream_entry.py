"""A message as an entry of ``wa:events``: valid JSON whatever came in, and no secret in it."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from evosaga.events import streams
from evosaga.orchestrator.routing import Route
from evosaga.orchestrator.whatsapp.webhooks.payloads import Message

_REDACTED: Final = "[redacted]"
_LONE: Final = re.compile("[\ud800-\udfff]")
"""Half of a character. JSON may spell it, most readers of JSON refuse it."""


def entry(message: Message, route: Route, secrets: Sequence[str]) -> dict[str, str]:
    """The fields: what routing needs one by one, all of it as a CloudEvent in ``data``.

    ``secrets`` are never handed on, wherever in a message they stand.
    """
    routing = {
        "instance_name": route.instance_name,
        "clinic_id": route.clinic_id or "",
        "organization_id": route.organization_id,
        "event": message.event,
    }
    told: dict[str, Any] = {
        "specversion": "1.0",
        "id": message.digest,
        "source": f"/evosaga/evolution/{quote(route.instance_name, safe='')}",
        "type": message.event,
        "subject": route.instance_name,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": dict(message.body) | routing | {"clinic_id": route.clinic_id},
    }
    if message.omitted:
        told["omitted"] = message.omitted
    text = _json(told)
    # The text is only looked at. Replacing in it could break it: a key may be a part of a number,
    # or stand there with its quotes escaped.
    if any(secret in text or _json(secret)[1:-1] in text for secret in secrets):
        text = _json(_without(told, secrets))
    return routing | {streams.FIELD.decode(): text}


def _json(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else _LONE.sub("\N{REPLACEMENT CHARACTER}", text)


def _without(value: Any, secrets: Sequence[str]) -> Any:
    match value:
        case dict():
            return {_without(k, secrets): _without(v, secrets) for k, v in value.items()}
        case list():
            return [_without(inner, secrets) for inner in value]
        case str():
            for secret in secrets:
                value = value.replace(secret, _REDACTED)
            return value
        case bool() | None:
            return value
    return _REDACTED if any(secret in json.dumps(value) for secret in secrets) else value
