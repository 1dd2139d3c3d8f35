"""Steps that make and remove an instance on the Evolution server.

Before anything is tried again or undone the instance is looked at (``EvolutionApi.see``), and an
instance of another owner is never touched, whatever its name.
"""

import asyncio
import time
from dataclasses import replace
from typing import Final

from evosaga.sagas.definition import Effect
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
from evosaga.sagas.whatsapp.evolution.legacy_instances import gone, listed_token
from evosaga.sagas.whatsapp.evolution.partial import PATIENCE, only_ours, provoke_clean_up, remains
from evosaga.sagas.whatsapp.evolution.payload import payload
from evosaga.sagas.whatsapp.follow_ups import watch
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
_NOT_DONE: Final = frozenset({Verdict.NOT_SENT, Verdict.MISCONFIGURED, Verdict.BUSY})
"""Nothing has happened, and the cause is not this saga's."""
_VANISH_SECONDS: Final = 15.0
_REMOVAL_SECONDS: Final = 3.0
_RACE_SECONDS: Final = 0.4
_SIGHTINGS: Final = {
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
    if verdict in _NOT_DONE:
        return hold_unsent(ctx, answer, verdict)
    if verdict is Verdict.LANDED and not again:
        quiet = ctx.services.quiet_seconds
        return Held(_HALF_REMOVED, _BEING_REMOVED[_HALF_REMOVED], quiet, in_doubt=True)
    return Unknown("instance_half_made", remains("delete", name, answer, seen))


async def remove_instance(ctx: Context) -> Outcome:
    """Remove what ``create_instance`` made or may have made; done when it is seen to be gone."""
    name, token = name_of(ctx), token_of(ctx)
    seen = await evolution_of(ctx).see(name, token)
    if seen.sight is Presence.ABSENT and not ctx.was_done:
        # Its create was never seen to land, and may land yet.
        if (left := quiet_left(ctx)) > 0:
            return Held("quiet_time", f"instance {name} is absent; looking again", left)
        return Done({"note": "no_effect"}, watch(ctx))
    outcome = await _remove(ctx, name, token, seen)
    age = ctx.doubt_age
    if isinstance(outcome, Done) and age is not None and age < ctx.services.watch_after[-1]:
        # A create went without an answer, and what is gone now may have been another one's.
        return replace(outcome, follow_up=watch(ctx))
    return outcome


def look_again(nth: int) -> Effect:
    """The nth look at a place that should be empty: what landed late is removed late."""

    async def look(ctx: Context) -> Outcome:
        if (left := ctx.services.watch_after[nth] - ctx.age) > 0:
            return Held("watching", "looking again later", left)
        name, token = name_of(ctx), token_of(ctx)
        seen = await evolution_of(ctx).see(name, token)
        outcome = await _remove(ctx, name, token, seen)
        if isinstance(outcome, Done) and outcome.result["note"] == "removed":
            return Done({"note": "landed_late_and_removed"})
        return outcome

    return look


async def delete_instance(ctx: Context) -> Outcome:
    """The delete saga's pivot: remove the instance that the row names."""
    name = name_of(ctx)
    token = token_of(ctx) if ctx.facts.get("key_id") else await listed_token(ctx, name)
    if isinstance(token, Held):
        return token
    if token is None:
        return await gone(ctx, name) or Done({"note": "already_absent"})
    if ctx.facts.get("token_hash") not in (None, fingerprint(token)):
        return Done({"note": "not_ours"})  # another one bears the name by now
    return await _remove(ctx, name, token, await evolution_of(ctx).see(name, token))


async def _remove(ctx: Context, name: str, token: str, seen: InstanceSighting) -> Outcome:
    if (settled := _settled(ctx, seen, "already_absent")) is not None:
        return settled
    if ctx.in_doubt:
        # A repeated DELETE is a second removal by name, so first give the one before its time.
        seen = await _vanishes(ctx, name, token, _REMOVAL_SECONDS)
        if (settled := _settled(ctx, seen, "removed")) is not None:
            return settled
    answer = await partial.delete(ctx, name, token, seen)
    if classify_delete(answer) is Verdict.REJECTED:
        # 2.3.7 refuses the DELETE of a live instance every third time, having logged it out:
        # nothing is under way then, so asking again is no second removal.
        answer = await partial.delete(ctx, name, token, seen)
    verdict = classify_delete(answer)
    if verdict in _NOT_DONE:
        return hold_unsent(ctx, answer, verdict)
    wait = _VANISH_SECONDS if verdict is Verdict.LANDED else 1.0
    # A 404 sets nothing going: there is only what an earlier delete may have left to do.
    seen = await _vanishes(ctx, name, token, _REMOVAL_SECONDS if answer.status == 404 else wait)
    stays = seen.sight is Presence.HALF and answer.status == 404 and ctx.attempt >= PATIENCE
    if stays and await listed_token(ctx, name) == token:
        return await _remove_by_create(ctx, name, token)
    pause = max(_REMOVAL_SECONDS, seen.answer.retry_after or answer.retry_after or 0.0)
    return _after_removal(ctx, "delete", replace(answer, retry_after=pause), verdict, seen)


def _settled(ctx: Context, seen: InstanceSighting, absent: str) -> Outcome | None:
    """What a look before a DELETE settles; None: there is something of ours to remove."""
    match seen.sight:
        case Presence.ABSENT:
            return Done({"note": absent})
        case Presence.FOREIGN:
            return Done({"note": "not_ours"})
        case Presence.UNKNOWN:
            return hold_unknown(ctx, seen)
        case Presence.MINE | Presence.HALF:
            return None


def _after_removal(
    ctx: Context, asked: str, answer: Answer, verdict: Verdict, seen: InstanceSighting
) -> Outcome:
    """What a look means after a removal was asked for."""
    match seen.sight, seen.answer.tried, verdict:
        case Presence.ABSENT, _, _:
            return Done({"note": "removed"})
        case _, False, _:
            held = hold_unknown(ctx, seen)
            later = max(held.retry_after or 0.0, answer.retry_after or 0.0) or None
            return replace(held, retry_after=later, in_doubt=True)
        case _, _, Verdict.OUTAGE:
            return out_of_service(ctx, answer.retry_after)
        case _:
            return Unknown("instance_remains", remains(asked, name_of(ctx), answer, seen))


async def _remove_by_create(ctx: Context, name: str, token: str) -> Outcome:
    """A row that no delete can reach goes with the clean-up after a create that has to fail."""
    answer = await provoke_clean_up(ctx, name, token)
    verdict = classify_create(answer)
    if verdict in _NOT_DONE:
        return hold_unsent(ctx, answer, verdict)
    if verdict is Verdict.LANDED:
        # The row had gone meanwhile, so what is there now is what we have just made.
        seen = await evolution_of(ctx).see(name, token)
        return await _remove(replace(ctx, attempt=1, in_doubt=False), name, token, seen)
    seen = await _vanishes(ctx, name, token, _VANISH_SECONDS)
    if seen.sight is Presence.ABSENT and answer.status != 400:
        # The create may be under way still, and find nothing in its way by now.
        return Held("quiet_time", f"{name} is absent; looking again", ctx.services.quiet_seconds)
    return _after_removal(ctx, "create that cleans up", answer, verdict, seen)


async def _vanishes(ctx: Context, name: str, token: str, seconds: float) -> InstanceSighting:
    """Evolution answers a delete before it deletes: wait until neither view has the instance."""
    deadline, pause = time.monotonic() + seconds, 0.03
    while True:
        seen = await evolution_of(ctx).see(name, token)
        if seen.sight is Presence.ABSENT or not seen.answer.tried or time.monotonic() >= deadline:
            return seen
        await asyncio.sleep(pause)
        pause = min(1.0, pause * 1.6)


async def probe_instance(ctx: Context) -> Finding:
    """Whether the instance that ``create_instance`` made is there."""
    name, token = name_of(ctx), token_of(ctx)
    seen = await evolution_of(ctx).see(name, token)
    if seen.sight is not Presence.MINE:
        return Finding(_SIGHTINGS[seen.sight], seen.evidence)
    if (lacks := await completeness.lacks(ctx, wanted_configuration(ctx, name, token))) is not None:
        return Finding(Sighting.HALF, f"{seen.evidence}, but {lacks}")
    return Finding(Sighting.THERE, seen.evidence)


async def probe_removal(ctx: Context) -> Finding:
    """Whether what ``delete_instance`` does is there: the absence of our instance."""
    name = name_of(ctx)
    token = token_of(ctx) if ctx.facts.get("key_id") else await listed_token(ctx, name)
    if isinstance(token, Held):
        return Finding(Sighting.UNKNOWN, token.message)
    if token is None:
        left = await gone(ctx, name)
        if left is not None:
            return Finding(Sighting.UNKNOWN, left.message)
        return Finding(Sighting.THERE, "Evolution's list does not have it")
    seen = await evolution_of(ctx).see(name, token)
    match seen.sight:
        case Presence.ABSENT | Presence.FOREIGN:  # under a stranger's instance ours can't be
            return Finding(Sighting.THERE, seen.evidence)
        case Presence.MINE:
            return Finding(Sighting.ABSENT, seen.evidence)
        case Presence.HALF | Presence.UNKNOWN:
            return Finding(_SIGHTINGS[seen.sight], seen.evidence)


def _taken(name: str) -> Rejected:
    return Rejected("name_taken", f"Evolution has an instance {name} that is not ours")
