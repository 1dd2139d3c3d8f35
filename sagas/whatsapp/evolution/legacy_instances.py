"""Instances of older code: a row names them, and only Evolution knows their token."""

from typing import Final

from evosaga.sagas.outcome import Held
from evosaga.sagas.whatsapp.evolution.answers import Presence, Verdict
from evosaga.sagas.whatsapp.evolution.holds import hold, hold_unsent, no_list
from evosaga.sagas.whatsapp.evolution.models import ListedInstance, UnreadableList
from evosaga.sagas.whatsapp.services import Context, evolution_of

NO_TOKEN: Final = "none"  # noqa: S105  # opens nothing; existence is answered all the same
HIDDEN: Final = "token_hidden"
UNREADABLE: Final = "list_unreadable"
HALF: Final = "half_there"


async def listed_instance(ctx: Context, name: str) -> ListedInstance | Held | None:
    """What Evolution lists under the name; None proves that it lists no such instance."""
    listed = await evolution_of(ctx).instances()
    if listed.code:
        return hold_unsent(ctx, listed, Verdict.NOT_SENT)
    if listed.status != 200 or listed.body is None:
        return no_list(ctx, listed)
    try:
        return listed.listed(name)
    except UnreadableList as reason:
        return hold(ctx, UNREADABLE, f"{reason}: check the version of Evolution")


async def listed_token(ctx: Context, name: str) -> str | Held | None:
    """The token that Evolution lists for the name; None when the whole list has no such name.

    Held where the list proves neither: its token is not shown, or not all of it can be read.
    """
    found = await listed_instance(ctx, name)
    if isinstance(found, Held):
        return found
    if found is None or found.token is not None:
        return found.token if found else None
    return hold(
        ctx,
        HIDDEN,
        f"Evolution lists {name} without its token, so it can't be removed as the one that the "
        "row means: remove it by hand (Evolution's manager), and this goes on by itself",
    )


async def gone(ctx: Context, name: str) -> Held | None:
    """None when what the list lacks is not in Evolution's memory either."""
    seen = await evolution_of(ctx).see(name, NO_TOKEN)
    match seen.sight:
        case Presence.ABSENT:
            return None
        case Presence.HALF:
            why = f"{name} is there by half ({seen.evidence}): restart Evolution, and this goes on"
            return hold(ctx, HALF, f"{why} by itself")
    # It came into the list meanwhile, or the answers prove nothing.
    return hold(ctx, UNREADABLE, f"{name} is in no list, but: {seen.evidence}")
