"""The ``Held`` outcomes of steps while Evolution is in trouble, and the text of its refusals."""

from dataclasses import replace
from typing import Final

from evosaga.sagas.outcome import Held
from evosaga.sagas.whatsapp.evolution.answers import (
    BUSY,
    MISCONFIGURED,
    SERVER_UNKNOWN,
    UNAVAILABLE,
    UNREACHABLE,
    Answer,
    Verdict,
)
from evosaga.sagas.whatsapp.evolution.client import InstanceSighting
from evosaga.sagas.whatsapp.services import Context, server_name

_CURE: Final = (
    "check EVOSAGA_EVOLUTION_URL, EVOSAGA_EVOLUTION_API_KEY (of a further server, "
    "EVOSAGA_EVOLUTION_SERVERS) and the server's licence"
)
_SOONEST: Final = 0.1


def hold_unsent(ctx: Context, answer: Answer, verdict: Verdict) -> Held:
    """Nothing was done, and it is not this saga's fault: wait."""
    if verdict is Verdict.BUSY:
        later = _in_bounds(answer.retry_after)
        return hold(ctx, BUSY, "Evolution asked to come back later", later)
    code = MISCONFIGURED if verdict is Verdict.MISCONFIGURED else answer.code
    return hold(ctx, code, _trouble(code, answer), answer.retry_after)


def hold_unknown(ctx: Context, seen: InstanceSighting) -> Held:
    """A look that proves nothing: look again."""
    answer = seen.answer
    if answer.status == 429:
        return hold_unsent(ctx, answer, Verdict.BUSY)
    words = _trouble(answer.code, answer) if answer.code else seen.evidence
    return hold(ctx, answer.code or UNAVAILABLE, words, answer.retry_after)


def no_list(ctx: Context, answer: Answer) -> Held:
    """Evolution does not give its list, which can't be replaced by other questions."""
    code = answer.code or UNAVAILABLE
    return hold(ctx, code, f"Evolution's list: {answer.told}", answer.retry_after)


def out_of_service(ctx: Context, retry_after: float | None) -> Held:
    """Evolution or a proxy answered 503: what was asked may have happened all the same."""
    later = _in_bounds(retry_after)
    held = hold(ctx, UNAVAILABLE, "Evolution is unavailable (503)", later)
    return replace(held, in_doubt=True)


def _in_bounds(retry_after: float | None) -> float | None:
    """A wish to be asked again at once is left to the engine, whose pauses grow."""
    return retry_after if retry_after is not None and retry_after >= _SOONEST else None


def hold(ctx: Context, code: str, why: str, retry_after: float | None = None) -> Held:
    """Held, naming the server that is waited for where there are several."""
    several = len(ctx.services.servers) > 1 and code != SERVER_UNKNOWN  # which names it itself
    return Held(code, f"{why} (server {server_name(ctx)})" if several else why, retry_after)


def _trouble(code: str, answer: Answer) -> str:
    if code == UNREACHABLE:
        return f"can't connect to Evolution: {answer.text}"
    if code == MISCONFIGURED:
        if not answer.sent:
            return answer.text  # which tells what was answered before, and the cure
        who = "Evolution's address" if answer.alien else "Evolution"
        return f"{who} answered {answer.text}: {answer.meaning or _CURE}"
    return answer.text


def error_text(ctx: Context, answer: Answer, token: str) -> str:
    """Evolution's own words on what was wrong, shortened, without our secrets."""
    text = answer.message or answer.text
    webhook = ctx.services.keys.webhook_token(ctx.saga_id, ctx.facts["key_id"])
    for secret in (token, webhook, ctx.input.number):
        text = text.replace(secret, "[redacted]") if secret else text
    # It is shown in terminals, where an escape sequence would be obeyed.
    return "".join(c if c.isprintable() else " " for c in text[:200])
