"""Verification: a second look, right before a repair changes anything."""

from uuid import UUID

from evosaga.sagas.outcome import Done, Held, Outcome, Rejected
from evosaga.sagas.whatsapp.evolution.answers import UNAVAILABLE, Answer, Presence
from evosaga.sagas.whatsapp.evolution.holds import hold, hold_unknown
from evosaga.sagas.whatsapp.evolution.legacy_instances import NO_TOKEN, listed_instance
from evosaga.sagas.whatsapp.ownership import fingerprint
from evosaga.sagas.whatsapp.services import Context, evolution_of


async def see_again(ctx: Context) -> Outcome:
    """Whether what the row is to say is still what there is to see."""
    seen = await _seen(ctx)
    if isinstance(seen, Held):
        return seen
    if seen != ctx.input.seen:
        return Rejected("no_longer_so", f"the instance looked {ctx.input.seen}, now it is {seen}")
    return Done({"seen": seen})


async def see_to_adopt(ctx: Context) -> Outcome:
    """Whether the instance that is to be named is the one that was seen, and how it is."""
    listed = await listed_instance(ctx, ctx.facts["instance_name"])
    if isinstance(listed, Held):
        return listed
    token = listed.token if listed else None
    if token is None or fingerprint(token) != ctx.input.token_hash:
        return Rejected("no_longer_so", "another instance bears the name now, or none")
    seen = await _look(ctx, token)
    if isinstance(seen, Held):
        return seen
    if seen != ctx.input.seen:
        return Rejected("no_longer_so", f"the instance looked {ctx.input.seen}, now it is {seen}")
    return Done({"seen": seen})


async def nothing_to_undo(_: Context) -> Outcome:
    """A look changes nothing."""
    return Done()


async def _seen(ctx: Context) -> str | Held:
    if key_id := ctx.facts.get("key_id"):
        token = ctx.services.keys.instance_token(UUID(ctx.facts["created_by"]), key_id)
        return await _look(ctx, token)
    listed = await listed_instance(ctx, ctx.facts["instance_name"])
    if isinstance(listed, Held):
        return listed
    if listed is not None and listed.token is None:
        return await _without_token(ctx)
    return await _look(ctx, listed.token if listed and listed.token else NO_TOKEN)


async def _look(ctx: Context, token: str) -> str | Held:
    seen = await evolution_of(ctx).see(ctx.facts["instance_name"], token)
    match seen.sight:
        case Presence.ABSENT:
            return "missing"
        case Presence.FOREIGN:
            return "foreign"
        case Presence.HALF:
            return "half"
        case Presence.UNKNOWN:
            return hold_unknown(ctx, seen)
        case Presence.MINE:
            return _open_or_closed(seen.answer)


async def _without_token(ctx: Context) -> str | Held:
    """How an instance is whose token the list hides: our row names it, and the name is enough to
    look, though not to remove."""
    answer = await evolution_of(ctx).memory(ctx.facts["instance_name"], None)
    if answer.status == 200 and answer.instance is not None and answer.instance.said:
        return _open_or_closed(answer)
    if answer.status in (200, 404):
        return "half"
    return hold(ctx, answer.code or UNAVAILABLE, f"Evolution answers {answer.text}")


def _open_or_closed(answer: Answer) -> str:
    return "open" if answer.instance and answer.instance.state == "open" else "closed"
