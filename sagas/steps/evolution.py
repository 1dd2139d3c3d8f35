"""Instances on the Evolution server: make one, remove one, ask for its QR code.

Before anything is tried again or undone the instance is looked at (``EvolutionApi.look``), and a
stranger's instance is never touched, whatever its name.
"""

import asyncio
import json
import time
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError

from sagas.definition import Effect
from sagas.outcome import Done, FollowUp, Held, Outcome, Rejected, Unknown
from sagas.ownership import fingerprint
from sagas.steps.cache import trouble
from sagas.steps.evolution_api import Answer, Sight, Verdict, classify_create
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
QR_TTL: Final = 60
_CLEANING_UP: Final = "refused_and_cleaning_up"
_VANISH_SECONDS: Final = 15.0
_REMOVAL_SECONDS: Final = 3.0


async def create_instance(ctx: StepContext) -> Outcome:
    """Make the instance under our name and birthmark, and see it there before saying so."""
    name, token = _name(ctx), _token(ctx)
    if ctx.in_doubt:
        if ctx.last_code == _CLEANING_UP and (left := ctx.world.quiet_seconds - ctx.doubt_age) > 0:
            return Held(_CLEANING_UP, "Evolution may still remove what it refused", left)
        match await ctx.world.evolution.look(name, token):
            case Sight.MINE:
                return Done({"token_hash": fingerprint(token), "adopted": True})
            case Sight.FOREIGN:
                return _taken(name)
            case Sight.HALF:
                return Unknown("instance_half_made", f"only half of instance {name} is there")
            case Sight.UNKNOWN:
                return Held("evolution_unavailable", "Evolution does not answer clearly")
            case Sight.ABSENT:
                pass
    answer = await ctx.world.evolution.create(_payload(ctx, name, token))
    verdict = classify_create(answer)
    match verdict:
        case Verdict.NOT_SENT:
            return Held("evolution_unreachable", f"can't connect to Evolution: {answer.text}")
        case Verdict.REJECTED:
            said = _said(ctx, answer)
            return Rejected("evolution_refused", f"Evolution refused the instance: {said}")
        case Verdict.MISCONFIGURED:
            return Held(
                "evolution_misconfigured",
                f"Evolution answered {answer.text} ({_said(ctx, answer)}): check "
                "EVOSAGA_EVOLUTION_URL, EVOSAGA_EVOLUTION_API_KEY and the server's licence",
                30.0,
            )
        case Verdict.BUSY:
            return Held("evolution_busy", "Evolution asked to come back later", answer.retry_after)
        case Verdict.LANDED | Verdict.AMBIGUOUS | Verdict.OUTAGE:
            return await _verify(ctx, name, token, answer, verdict)


async def _verify(
    ctx: StepContext, name: str, token: str, answer: Answer, verdict: Verdict
) -> Outcome:
    """An answer is only evidence: a 201 can be false, an error can come after the effect."""
    if answer.status == 400:
        # Whatever went wrong, Evolution removes by name in a moment, so what is there now proves
        # nothing; the next attempt waits until that is over and looks then.
        return Unknown(_CLEANING_UP, f"Evolution answered 400: {_said(ctx, answer)}")
    sight = await ctx.world.evolution.look(name, token)
    if sight is Sight.MINE and ctx.input.instance_name:
        # A name that people choose may be wanted twice at once, and then the loser's clean-up
        # takes the winner's instance with it.
        await asyncio.sleep(ctx.world.settle_seconds)
        sight = await ctx.world.evolution.look(name, token)
    if sight is Sight.MINE:
        return Done({"token_hash": fingerprint(token)})
    if sight is Sight.FOREIGN:
        return _taken(name)
    if verdict is Verdict.OUTAGE:
        return Held("evolution_unavailable", "Evolution is unavailable (503)", in_doubt=True)
    return Unknown(
        "evolution_unclear", f"Evolution answered {answer.text}, the instance looks {sight}"
    )


async def remove_instance(ctx: StepContext) -> Outcome:
    """Remove what ``create_instance`` made or may have made; done when it is seen to be gone."""
    name, token = _name(ctx), _token(ctx)
    sight = await ctx.world.evolution.look(name, token)
    if sight is Sight.ABSENT and not ctx.was_done:
        # Its create was never seen to land, and may land yet.
        if (left := ctx.world.quiet_seconds - ctx.doubt_age) > 0:
            return Held("quiet_time", f"instance {name} is absent; looking again", left)
        watch = {k: ctx.facts[k] for k in ("instance_name", "created_by", "key_id")}
        return Done({"note": "no_effect"}, FollowUp("instance.watch", watch))
    return await _remove(ctx, name, token, sight)


def look_again(nth: int) -> Effect:
    """The nth look at a place that should be empty: what landed late is removed late."""

    async def look(ctx: StepContext) -> Outcome:
        if (left := ctx.world.watch_after[nth] - ctx.age) > 0:
            return Held("watching", "looking again later", left)
        name, token = _name(ctx), _token(ctx)
        sight = await ctx.world.evolution.look(name, token)
        outcome = await _remove(ctx, name, token, sight)
        if isinstance(outcome, Done) and outcome.result["note"] == "removed":
            return Done({"note": "landed_late_and_removed"})
        return outcome

    return look


async def delete_instance(ctx: StepContext) -> Outcome:
    """The delete saga's pivot: remove the instance that the row names."""
    name = _name(ctx)
    token = _token(ctx) if ctx.facts.get("key_id") else await _listed_token(ctx, name)
    if isinstance(token, Held):
        return token
    if token is None:
        return Done({"note": "already_absent"})
    return await _remove(ctx, name, token, await ctx.world.evolution.look(name, token))


async def _remove(ctx: StepContext, name: str, token: str, sight: Sight) -> Outcome:
    match sight:
        case Sight.ABSENT:
            return Done({"note": "already_absent"})
        case Sight.FOREIGN:
            return Done({"note": "not_ours"})
        case Sight.UNKNOWN:
            return Held("evolution_unavailable", "Evolution does not answer clearly")
        case Sight.MINE | Sight.HALF:
            pass
    # A repeated DELETE is a second removal by name, so first give the one before its time.
    if ctx.in_doubt and await _vanishes(ctx, name, token, _REMOVAL_SECONDS):
        return Done({"note": "removed"})
    answer = await ctx.world.evolution.delete(name, token)
    if answer.status == 400:
        # 2.3.7 refuses the DELETE of a live instance every third time, having logged it out:
        # nothing is under way then, so asking again is no second removal.
        answer = await ctx.world.evolution.delete(name, token)
    if not answer.sent:
        return Held("evolution_unreachable", f"can't connect to Evolution: {answer.text}")
    if answer.status == 429:
        return Held("evolution_busy", "Evolution asked to come back later", answer.retry_after)
    wait = _VANISH_SECONDS if answer.status in (200, 404) else 1.0
    if await _vanishes(ctx, name, token, wait):
        return Done({"note": "removed"})
    return Unknown(
        "instance_remains", f"Evolution answered {answer.text} to the delete and {name} remains"
    )


async def _vanishes(ctx: StepContext, name: str, token: str, seconds: float) -> bool:
    """Evolution answers a delete before it deletes: wait until neither view has the instance."""
    deadline, pause = time.monotonic() + seconds, 0.03
    while True:
        if await ctx.world.evolution.look(name, token) is Sight.ABSENT:
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(1.0, pause * 1.6)


async def _listed_token(ctx: StepContext, name: str) -> str | Held | None:
    """The token of an instance that older code made: our row names it, the server knows it."""
    listed = await ctx.world.evolution.instances()
    if listed.status != 200 or not isinstance(listed.body, list):
        return Held("evolution_unavailable", f"Evolution's list: {listed.text}")
    for row in listed.body:
        if isinstance(row, dict) and row.get("name") == name and row.get("token"):
            return str(row["token"])
    return None


async def ask_for_qr(ctx: StepContext) -> Outcome:
    """Start pairing and keep the QR code in Redis for a minute.

    A QR code that doesn't come is no failed create: it can be asked for at any time.
    """
    if ctx.input.channel != "WHATSAPP-BAILEYS":
        return Done({"qr": "not_needed"})
    answer = await ctx.world.evolution.connect(_name(ctx), _token(ctx), ctx.input.number)
    body = answer.body if isinstance(answer.body, dict) else {}
    if answer.status != 200 or not body.get("base64"):
        return Done({"qr": "not_yet"})
    code = {
        "base64": body["base64"],
        "code": body.get("code"),
        "pairing_code": body.get("pairingCode"),
    }
    try:
        await ctx.world.redis.set(f"evosaga:qr:{_name(ctx)}", json.dumps(code), ex=QR_TTL)
    except RedisError as error:
        return trouble(error)
    return Done({"qr": "ready"})


def _payload(ctx: StepContext, name: str, token: str) -> dict[str, Any]:
    """An allow-list: nothing of a command reaches Evolution unless it is named here."""
    payload: dict[str, Any] = {
        "instanceName": name,
        "integration": ctx.input.channel,
        "token": token,
        "qrcode": False,  # with it the call takes 5 s, during which everything can go wrong
    }
    if ctx.input.number:
        payload["number"] = ctx.input.number
    if ctx.input.webhook_url:
        payload["webhook"] = _webhook(ctx.input.webhook_url, {}, STATE_EVENTS + MESSAGE_EVENTS)
    elif ctx.world.public_url:
        secret = ctx.world.keys.webhook_token(ctx.saga_id, ctx.facts["key_id"])
        payload["webhook"] = _webhook(
            f"{ctx.world.public_url}/webhooks/evolution/{name}",
            {"X-Webhook-Token": secret},
            STATE_EVENTS + MESSAGE_EVENTS,
        )
    return payload


def _webhook(url: str, headers: dict[str, str], events: tuple[str, ...]) -> dict[str, Any]:
    """Without ``events`` Evolution answers 400 and removes the instance, so it is always there."""
    return {
        "url": url,
        "byEvents": False,
        "base64": False,
        "headers": headers,
        "events": list(events),
    }


def _name(ctx: StepContext) -> str:
    return str(ctx.facts["instance_name"])


def _token(ctx: StepContext) -> str:
    creator = UUID(ctx.facts["created_by"])
    return ctx.world.keys.instance_token(creator, ctx.facts["key_id"])


def _taken(name: str) -> Rejected:
    return Rejected("name_taken", f"Evolution has an instance {name} that is not ours")


def _said(ctx: StepContext, answer: Answer) -> str:
    """Evolution's own words on what was wrong, shortened, without what we told it in confidence."""
    body = answer.body if isinstance(answer.body, dict) else {}
    response = body.get("response")
    said = response.get("message") if isinstance(response, dict) else body.get("error")
    while isinstance(said, list) and said:
        said = said[0]
    text = str(said) if said else answer.text
    webhook = ctx.world.keys.webhook_token(ctx.saga_id, ctx.facts["key_id"])
    for secret in (_token(ctx), webhook, ctx.input.number):
        text = text.replace(secret, "[redacted]") if secret else text
    return text[:200]
