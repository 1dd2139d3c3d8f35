"""What is sent: alerts in the words of each format, signed as Standard Webhooks prescribe.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from evosaga.orchestrator.config.receivers import Receiver, secret_bytes

TEST: Final = "alert.test"
_PREFIX: Final = "whsec_"
_MARKS: Final = {"alert.firing": ":rotating_light:", "alert.resolved": ":white_check_mark:"}
_COLORS: Final = {"alert.firing": "#d32f2f", "alert.resolved": "#2e7d32"}


def keys_of(name: str, receiver: Receiver, secrets: Sequence[str]) -> list[bytes]:
    """The keys that sign for this receiver, the one for what is new first.

    ``secrets``: those of EVOSAGA_SECRET_KEY, from which they are derived where it has none of its
    own; without either nothing is signed.
    """
    if receiver.secret is not None:
        return secret_bytes(receiver.secret)
    purpose = f"evosaga receiver {name}".encode()
    return [hmac.digest(secret.encode(), purpose, hashlib.sha256) for secret in secrets]


def told_secret(key: bytes) -> str:
    """A key as receivers are given it."""
    return _PREFIX + base64.b64encode(key).decode()


def signed(message_id: str, at: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of a message. ``at``: seconds since 1970; one signature for each key."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(at)}
    content = f"{message_id}.{at}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)) for key in keys]
    if signatures:
        headers["webhook-signature"] = " ".join(f"v1,{one.decode()}" for one in signatures)
    return headers


def rendered(receiver: Receiver, type_: str, body: Mapping[str, Any]) -> tuple[bytes, str]:
    """The body for this receiver, and its content type."""
    if type_.startswith("alert.") and receiver.format == "slack":
        return _json(_slack(type_, body["data"])), "application/json"
    if type_.startswith("alert.") and receiver.format == "pagerduty":
        return _json(_pagerduty(receiver, type_, body)), "application/json"
    kind = "application/cloudevents+json" if "specversion" in body else "application/json"
    return _json(body), kind


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _slack(type_: str, alert: Mapping[str, Any]) -> dict[str, Any]:
    """For an incoming webhook of Slack, or of what takes the same, as Mattermost does."""
    state = type_.removeprefix("alert.")
    text = f"{_MARKS.get(type_, ':information_source:')} {state}: {_escaped(alert['message'])}"
    more = [_escaped(alert["cure"])] if alert.get("cure") and type_ != "alert.resolved" else []
    if runbook := alert.get("runbook"):
        at = _escaped(runbook)
        more.append(f"<{at}|runbook>" if runbook.startswith("http") else f"runbook: {at}")
    return {
        "text": text,
        "attachments": [{"color": _COLORS.get(type_, "#757575"), "text": "\n".join(more)}],
    }


def _escaped(text: str) -> str:
    """Slack reads & < > as markup; a message may quote a stranger."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _pagerduty(receiver: Receiver, type_: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """For the Events API v2. A test is triggered and resolved under a key of its own."""
    alert = body["data"]
    assert receiver.routing_key is not None
    told: dict[str, Any] = {
        "routing_key": receiver.routing_key.get_secret_value(),
        "event_action": "resolve" if type_ == "alert.resolved" else "trigger",
        "dedup_key": f"evosaga-alert-{alert['id']}",
    }
    if type_ == "alert.resolved":
        return told
    told["payload"] = {
        "summary": alert["message"][:1024],
        "source": "evosaga",
        "severity": "info" if type_ == TEST else alert["severity"],
        "timestamp": body["timestamp"],
        "class": alert["code"],
        "custom_details": alert,
    }
    if str(alert.get("runbook", "")).startswith("http"):
        told["links"] = [{"href": alert["runbook"], "text": "runbook"}]
    return told
