"""The QR code of a new instance: asked for once, and kept for a minute."""

from typing import Any

from redis.exceptions import RedisError

from evosaga.sagas.outcome import Done, Outcome
from evosaga.sagas.whatsapp.evolution.answers import BUSY, SERVER_UNKNOWN, Verdict
from evosaga.sagas.whatsapp.evolution.holds import hold_unsent
from evosaga.sagas.whatsapp.identity import name_of, token_of
from evosaga.sagas.whatsapp.services import Context, evolution_of
from evosaga.sagas.whatsapp.steps.routing_key import keep_qr, trouble


def needs_no_qr(wanted: Any) -> dict[str, str] | None:
    """Only a phone is paired; any other channel has nothing to wait for."""
    return None if wanted.channel == "WHATSAPP-BAILEYS" else {"qr": "not_needed"}


async def ask_for_qr(ctx: Context) -> Outcome:
    """Start pairing and keep the QR code in Redis for a minute.

    A QR code that doesn't come is no failed create: it can be asked for at any time.
    """
    if (nothing := needs_no_qr(ctx.input)) is not None:
        return Done(nothing)
    answer = await evolution_of(ctx).connect(name_of(ctx), token_of(ctx), ctx.input.number)
    if answer.code in (BUSY, SERVER_UNKNOWN):
        return hold_unsent(ctx, answer, Verdict.NOT_SENT)
    code = answer.qr_code
    if answer.status != 200 or code is None or code["base64"] is None:
        return Done({"qr": "not_yet"})
    try:
        kept = await keep_qr(ctx.services.redis, name_of(ctx), ctx.facts["created_by"], code)
    except RedisError as error:
        return trouble(error)
    return Done({"qr": "ready" if kept else "not_yet"})  # not kept: a delete came
