"""The JSON that a create sends to Evolution."""

from typing import Any, Final
from uuid import UUID

from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Context

STATE_EVENTS: Final = (
    "QRCODE_UPDATED",
    "CONNECTION_UPDATE",
    "STATUS_INSTANCE",
    "LOGOUT_INSTANCE",
)
MESSAGE_EVENTS: Final = ("MESSAGES_UPSERT", "MESSAGES_UPDATE", "SEND_MESSAGE")
# Never REMOVE_INSTANCE: Evolution delivers that one before it removes, so a receiver that is
# down would stall the removal for twenty minutes.

TOKEN_HEADER: Final = "X-Webhook-Token"  # noqa: S105  # where it stands, not the token


def payload(ctx: Context, name: str, token: str) -> dict[str, Any]:
    """An allow-list: nothing of a command reaches Evolution unless it is named here."""
    wanted: dict[str, Any] = {
        "instanceName": name,
        "integration": ctx.input.channel,
        "token": token,
        "qrcode": False,  # with it the call takes 5 s, during which everything can go wrong
    }
    if ctx.input.number:
        wanted["number"] = ctx.input.number
    if (webhook := wanted_webhook(ctx, name)) is not None:
        wanted["webhook"] = webhook
    return wanted


def wanted_webhook(ctx: Context, name: str) -> dict[str, Any] | None:
    """The webhook that a create asks for: the command's, else ours; None: webhooks are off."""
    if ctx.input.webhook_url:
        return foreign_webhook(ctx.input.webhook_url)
    if not ctx.services.public_url:
        return None
    url = f"{ctx.services.public_url}/webhooks/evolution/{name}"
    return own_webhook(url, ctx.services.keys, ctx.saga_id, ctx.facts["key_id"])


def foreign_webhook(url: str) -> dict[str, Any]:
    """The webhook of an instance whose events go to another receiver: no token of ours."""
    return _webhook(url, {}, STATE_EVENTS + MESSAGE_EVENTS)


def own_webhook(url: str, keys: KeyRing, integration_id: UUID, key_id: str) -> dict[str, Any]:
    """The webhook of an instance whose events come to us. Raises ``UnknownKey``."""
    secret = keys.webhook_token(integration_id, key_id)
    return _webhook(url, {TOKEN_HEADER: secret}, STATE_EVENTS + MESSAGE_EVENTS)


def _webhook(url: str, headers: dict[str, str], events: tuple[str, ...]) -> dict[str, Any]:
    """Without ``events`` Evolution answers 400 and removes the instance, so it is always there."""
    return {
        "url": url,
        "byEvents": False,
        "base64": False,
        "headers": headers,
        "events": list(events),
    }
