"""The step that makes an instance on the Evolution server.

Before anything is tried again the instance is looked at (``EvolutionApi.see``), and an
instance of another owner is never touched, whatever its name.
"""

import asyncio
from dataclasses import replace
from typing import Final

from evosaga.sagas.outcome import Done, Finding, Held, Outcome, Rejected, Sighting, Unknown
from evosaga.sagas.whatsapp.evolution import completeness, partial
from evosaga.sagas.whatsapp.evolution.answers import (
    Answer,
    Presence,
    Verdict,
    classify_create,
    classify_delete,
)
from evosaga.sagas.whatsapp.evolution.client import InstanceSighting
from evosaga.sagas.whatsapp.evolution.completeness import (
    completed,
    vouches_for_all,
    wanted_configuration,
)
from evosaga.sagas.whatsapp.evolution.holds import (
    error_text,
    hold_unknown,
    hold_unsent,
    out_of_service,
)
from evosaga.sagas.whatsapp.evolution.partial import only_ours, remains
from evosaga.sagas.whatsapp.evolution.payload import payload
from evosaga.sagas.whatsapp.identity import name_of, token_of
from evosaga.sagas.whatsapp.ownership import fingerprint
from evosaga.sagas.whatsapp.services import Context, doubt_is_young, evolution_of, quiet_left

_CLEANING_UP: Final = "refused_and_cleaning_up"
_HALF_REMOVED: Final = "half_removed"
_BEING_REMOVED: Final = {
    _CLEANING_UP: "Evolution may still remove what it refused",
    _HALF_REMOVED: "half of an instance was removed; Evolution may still be at it",
}
"""Codes after which a removal by name may be under way, and so nothing of that name is made."""
NOT_DONE: Final = frozenset({Verdict.NOT_SENT, Verdict.MISCONFIGURED, Verdict.BUSY})
"""Nothing has happened, and the cause is not this saga's."""
_RACE_SECONDS: Final = 0.4
SIGHTINGS: Final = {
    Presence.MINE: Sighting.THERE,
    Presence.ABSENT: Sighting.ABSENT,
    Presence.FOREIGN: Sighting.FOREIGN,
    Presence.HALF: Sighting.HALF,
    Presence.UNKNOWN: Sighting.UNKNOWN,
}


async def create_instance(ctx: Context) -> Outcome:
    """Make the instance under our name and birthmark, and see it there before saying so."""
    name, token = name_of(ctx), token_of(ctx)
    # A chosen name may be a stranger's, whose instance a starting Evolution has not loaded yet:
    # then it lets the create pass, fails, and cleans up by name.
    if ctx.in_doubt or ctx.input.instance_name:
        if (why := _BEING_REMOVED.get(ctx.last_code or "")) and (left := quiet_left(ctx)) > 0:
            return Held(str(ctx.last_code), why, left)
        seen = await evolution_of(ctx).see(name, token)
        match seen.sight:
            case Presence.MINE:
                found = {"token_hash": fingerprint(token), "adopted": True}
                return await completed(ctx, wanted_configuration(ctx, name, token), found)
            case Presence.FOREIGN:
                return _taken(name)
            case Presence.HALF if ctx.in_doubt and seen.rowless and only_ours(ctx, name):
                return await _remove_rowless(ctx, name, token, seen)
            case Presence.HALF if not seen.rowless and doubt_is_young(ctx):
                return Held("instance_half_made", f"{name} is not loaded yet", 5.0)
            case Presence.HALF if ctx.in_doubt:
                return Unknown("instance_half_made", f"only half of instance {name} is there")
            case Presence.HALF:
                return Held("name_in_doubt", f"{name} is there by half: {seen.evidence}", 5.0)
            case Presence.UNKNOWN:
                return hold_unknown(ctx, seen)
            case Presence.ABSENT:
                pass
    answer = await evolution_of(ctx).create(payload(ctx, name, token))
    verdict = classify_create(answer)
    match verdict:
        case Verdict.NOT_SENT | Verdict.MISCONFIGURED | Verdict.BUSY:
            return hold_unsent(ctx, answer, verdict)
        case Verdict.REJECTED:
            words = error_text(ctx, answer, token)
            return Rejected("evolution_refused", f"Evolution refused the instance: {words}")
        case Verdict.LANDED | Verdict.AMBIGUOUS | Verdict.OUTAGE:
            return await _verify(ctx, name, token, answer, verdict)


async def _verify(ctx: Context, name: str, token: str, answer: Answer, verdict: Verdict) -> Outcome:
    """An answer is only evidence: a 201 can be false, an error can come after the effect."""
    if answer.status == 400:
        # Whatever went wrong, Evolution removes by name in a moment, so what is there now proves
        # nothing; the next attempt waits until that is over and looks then.
        return Unknown(_CLEANING_UP, f"Evolution answered 400: {error_text(ctx, answer, token)}")
    seen = await evolution_of(ctx).see(name, token)
    if seen.sight is Presence.MINE and (ctx.in_doubt or ctx.input.instance_name):
        # A name that people choose may be wanted twice at once, and an earlier try of our own may
        # land now: then the loser's clean-up takes the winner's instance with it.
        settle = ctx.services.settle_seconds
        await asyncio.sleep(settle if ctx.input.instance_name else min(settle, _RACE_SECONDS))
        seen = await evolution_of(ctx).see(name, token)
    if seen.sight is Presence.MINE:
        made = {"token_hash": fingerprint(token)}
        if vouches_for_all(ctx, name, token, answer):
            return Done(made)
        return await completed(ctx, wanted_configuration(ctx, name, token), made)
    if seen.sight is Presence.FOREIGN or (
        seen.rowless and answer.status == 403 and not ctx.in_doubt
    ):
        # What was in Evolution's memory before our first create is not ours, even without a row.
        return _taken(name)
    if not seen.answer.tried:
        # The server went down meanwhile, which costs no attempt; but the create was sent.
        return replace(hold_unknown(ctx, seen), in_doubt=True)
    if verdict is Verdict.OUTAGE:
        return out_of_service(ctx, answer.retry_after)
    return Unknown(
        "evolution_unclear", f"Evolution answered {answer.text}, the instance looks {seen.sight}"
    )


async def _remove_rowless(ctx: Context, name: str, token: str, seen: InstanceSighting) -> Outcome:
    """What an earlier try left in memory alone goes before the next one, which waits until
    Evolution can't be at it any more. Where it does not go, each further DELETE costs an attempt.
    """
    again = ctx.last_code == _HALF_REMOVED
    answer = await partial.delete(ctx, name, token, seen)
    verdict = classify_delete(answer)
    if verdict in NOT_DONE:
        return hold_unsent(ctx, answer, verdict)
    if verdict is Verdict.LANDED and not again:
        quiet = ctx.services.quiet_seconds
        return Held(_HALF_REMOVED, _BEING_REMOVED[_HALF_REMOVED], quiet, in_doubt=True)
    return Unknown("instance_half_made", remains("delete", name, answer, seen))


async def probe_instance(ctx: Context) -> Finding:
    """Whether the instance that ``create_instance`` made is there."""
    name, token = name_of(ctx), token_of(ctx)
    seen = await evolution_of(ctx).see(name, token)
    if seen.sight is not Presence.MINE:
        return Finding(SIGHTINGS[seen.sight], seen.evidence)
    if (lacks := await completeness.lacks(ctx, wanted_configuration(ctx, name, token))) is not None:
        return Finding(Sighting.HALF, f"{seen.evidence}, but {lacks}")
    return Finding(Sighting.THERE, seen.evidence)


def _taken(name: str) -> Rejected:
    return Rejected("name_taken", f"Evolution has an instance {name} that is not ours")
