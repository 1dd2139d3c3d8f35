"""Looking once more, right before a repair changes anything."""

from typing import Any, Final
from uuid import UUID

from sagas.outcome import Done, Held, Outcome, Rejected
from sagas.ownership import fingerprint
from sagas.steps.evolution_trouble import no_list, unclear
from sagas.steps.verdicts import Sight
from sagas.world import StepContext

_NO_TOKEN: Final = "none"  # noqa: S105  # opens nothing, and existence is told all the same


async def see_again(ctx: StepContext) -> Outcome:
    """Whether what the row is to say is still what there is to see."""
    seen = await _seen(ctx)
    if isinstance(seen, Held):
        return seen
    if seen != ctx.input.seen:
        return Rejected("no_longer_so", f"the instance looked {ctx.input.seen}, now it is {seen}")
    return Done({"seen": seen})


async def see_to_adopt(ctx: StepContext) -> Outcome:
    """Whether the instance that is to be named is the one that was seen, and how it is."""
    token = await _listed(ctx)
    if isinstance(token, Held):
        return token
    if token is None or fingerprint(token) != ctx.input.token_hash:
        return Rejected("no_longer_so", "another instance bears the name now, or none")
    seen = await _look(ctx, token)
    if isinstance(seen, Held):
        return seen
    if seen != ctx.input.seen:
        return Rejected("no_longer_so", f"the instance looked {ctx.input.seen}, now it is {seen}")
    return Done({"seen": seen})


async def nothing_to_undo(_: StepContext) -> Outcome:
    """A look changes nothing."""
    return Done()


async def _seen(ctx: StepContext) -> str | Held:
    if key_id := ctx.facts.get("key_id"):
        token = ctx.world.keys.instance_token(UUID(ctx.facts["created_by"]), key_id)
        return await _look(ctx, token)
    listed = await _listed(ctx)
    return listed if isinstance(listed, Held) else await _look(ctx, listed or _NO_TOKEN)


async def _look(ctx: StepContext, token: str) -> str | Held:
    seen = await ctx.evolution.see(ctx.facts["instance_name"], token)
    match seen.sight:
        case Sight.ABSENT:
            return "missing"
        case Sight.FOREIGN:
            return "foreign"
        case Sight.HALF:
            return "half"
        case Sight.UNKNOWN:
            return unclear(ctx, seen)
        case Sight.MINE:
            return "open" if state_of(seen.answer.body) == "open" else "closed"


def state_of(body: Any) -> str | None:
    """The state in an answer of ``connectionState``, None when there is none."""
    instance = body.get("instance") if isinstance(body, dict) else None
    state = instance.get("state") if isinstance(instance, dict) else None
    return state if isinstance(state, str) else None


async def _listed(ctx: StepContext) -> str | Held | None:
    """The token that Evolution lists for the name: only it can say, of what older code made."""
    listed = await ctx.evolution.instances()
    if listed.status != 200 or not isinstance(listed.body, list):
        return no_list(ctx, listed)
    for row in listed.body:
        if isinstance(row, dict) and row.get("name") == ctx.facts["instance_name"]:
            return str(row["token"]) if row.get("token") else None
    return None
