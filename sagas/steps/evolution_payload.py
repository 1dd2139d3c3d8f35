"""What a create asks Evolution for."""

from typing import Any, Final

from sagas.world import StepContext

STATE_EVENTS: Final = (
    "QRCODE_UPDATED",
    "CONNECTION_UPDATE",
    "STATUS_INSTANCE",
    "LOGOUT_INSTANCE",
)
MESSAGE_EVENTS: Final = ("MESSAGES_UPSERT", "MESSAGES_UPDATE", "SEND_MESSAGE")
# Never REMOVE_INSTANCE: Evolution delivers that one before it removes, so a receiver that is
# down would stall the removal for twenty minutes.


def payload(ctx: StepContext, name: str, token: str) -> dict[str, Any]:
    """An allow-list: nothing of a command reaches Evolution unless it is named here."""
    wanted: dict[str, Any] = {
        "instanceName": name,
        "integration": ctx.input.channel,
        "token": token,
        "qrcode": False,  # with it the call takes 5 s, during which everything can go wrong
    }
    if ctx.input.number:
        wanted["number"] = ctx.input.number
    if ctx.input.webhook_url:
        wanted["webhook"] = _webhook(ctx.input.webhook_url, {}, STATE_EVENTS + MESSAGE_EVENTS)
    elif ctx.world.public_url:
        secret = ctx.world.keys.webhook_token(ctx.saga_id, ctx.facts["key_id"])
        wanted["webhook"] = _webhook(
            f"{ctx.world.public_url}/webhooks/evolution/{name}",
            {"X-Webhook-Token": secret},
            STATE_EVENTS + MESSAGE_EVENTS,
        )
    return wanted


def _webhook(url: str, headers: dict[str, str], events: tuple[str, ...]) -> dict[str, Any]:
    """Without ``events`` Evolution answers 400 and removes the instance, so it is always there."""
    return {
        "url": url,
        "byEvents": False,
        "base64": False,
        "headers": headers,
        "events": list(events),
    }
