"""Steps that remove an instance from the Evolution server, and see that it is gone.

The instance is looked at before each DELETE (``EvolutionApi.see``), and one of another owner is
never touched, whatever its name.
"""

import asyncio
import time
from dataclasses import replace
from typing import Final

from evosaga.sagas.definition import Effect
from evosaga.sagas.outcome import Done, Finding, Held, Outcome, Sighting, Unknown
from evosaga.sagas.whatsapp.evolution import partial
from evosaga.sagas.whatsapp.evolution.answers import (
    Answer,
    Presence,
    Verdict,
    classify_create,
    classify_delete,
)
from evosaga.sagas.whatsapp.evolution.client import InstanceSighting
from evosaga.sagas.whatsapp.evolution.holds import hold_unknown, hold_unsent, out_of_service
from evosaga.sagas.whatsapp.evolution.legacy_instances import gone, listed_token
from evosaga.sagas.whatsapp.evolution.partial import PATIENCE, provoke_clean_up, remains
from evosaga.sagas.whatsapp.follow_ups import watch
from evosaga.sagas.whatsapp.identity import name_of, token_of
from evosaga.sagas.whatsapp.ownership import fingerprint
from evosaga.sagas.whatsapp.services import Context, evolution_of, quiet_left
from evosaga.sagas.whatsapp.steps.evolution_instance import NOT_DONE, SIGHTINGS

_VANISH_SECONDS: Final = 15.0
_REMOVAL_SECONDS: Final = 3.0


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
    if verdict in NOT_DONE:
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
    if verdict in NOT_DONE:
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
            return Finding(SIGHTINGS[seen.sight], seen.evidence)
