"""Half an instance: one of Evolution's two views has it, and the other has not.

A row without an instance in memory can't be deleted while CACHE_REDIS_SAVE_INSTANCES is true, as
it is shipped: the DELETE looks in memory alone and says 404 for ever. A create of the same name
gets past the same look, can't insert its row, answers 400, and then Evolution removes by name
whatever bears it (seen on 2.3.6 and 2.3.7). So that is how a row of ours is removed.

What is only in memory, without a row (Evolution's Postgres was away at the insert, whose failure it
swallows), shows no token and opens to none but the global key, with which a DELETE goes by name.
That DELETE is sent only where the instance can only be ours:

1. Its name is derived from the id of the saga that made it, ``wa-`` and a UUID, and was not chosen:
   no program but ours writes it, and only this saga's create does. A name that a command chose may
   be another owner's, so what is only in memory under such a name is left to a person.
2. Memory had no such name before our create. Evolution's look at its memory comes before anything
   else of a create and answers 403; a first create that gets that 403 and finds half an instance
   ends as ``name_taken`` (``create_instance``), and has then nothing to retry or to undo. So a saga
   that gets here later has a create that got past that look, or whose answer was lost.
3. Memory has it now and refuses our token, which it compares with the row of that name; asked by
   name the database says that there is no such row; and the whole list has no row of that name,
   whatever its token. So there is no row that the removal could take, and nothing with another
   owner: what has no row opens to no token and ends with the process. (Of another
   deployment in the same database the list shows nothing; none of its rows has this name, by 1.)

Each of the three is asked again before each DELETE; in between, the name stays what it is, and a
create that lands late is this saga's own. An instance made anew under the same name would meet the
removal of the one before, so a create waits out the quiet time first.
"""

from typing import Final

from evosaga.sagas.whatsapp.evolution.answers import Answer, Presence
from evosaga.sagas.whatsapp.evolution.client import InstanceSighting
from evosaga.sagas.whatsapp.evolution.models import UnreadableList
from evosaga.sagas.whatsapp.services import Context, evolution_of

PATIENCE: Final = 4
"""The attempt that does it. While Evolution starts, what is not loaded yet looks the same, and a
moment after a DELETE what is about to go does, too."""


def only_ours(ctx: Context, name: str) -> bool:
    """Whether the name can only be ours: derived from the saga's id, not chosen."""
    chosen = getattr(ctx.input, "asks", "") == "create" and ctx.input.instance_name is not None
    derived = name == f"wa-{ctx.facts.get('created_by')}" and bool(ctx.facts.get("key_id"))
    return derived and not chosen


async def delete(ctx: Context, name: str, token: str, seen: InstanceSighting) -> Answer:
    """DELETE with the instance's own token, or what no token opens, if it can only be ours."""
    if seen.rowless and only_ours(ctx, name) and await _without_a_row(ctx, name):
        return await evolution_of(ctx).delete_rowless(name)
    return await evolution_of(ctx).delete(name, token)


async def _without_a_row(ctx: Context, name: str) -> bool:
    listed = await evolution_of(ctx).instances()
    try:
        return listed.status == 200 and listed.listed(name) is None
    except UnreadableList:
        return False


async def provoke_clean_up(ctx: Context, name: str, token: str) -> Answer:
    """Have Evolution remove a row whose token was just seen to be ours.

    What it answers counts: should the row have gone meanwhile, an instance of ours is made (201).
    """
    wish = {"instanceName": name, "integration": "EVOLUTION", "token": token, "qrcode": False}
    return await evolution_of(ctx).create(wish)


def remains(asked: str, name: str, answer: Answer, seen: InstanceSighting) -> str:
    """What is left after something was asked for, and what a person can do about half of one."""
    told = f"Evolution answered {answer.text} to the {asked} and {name} remains"
    if seen.sight is not Presence.HALF:
        return told
    # A start loads what has a row, and forgets what is only in memory.
    return f"{told} by half ({seen.evidence}): restart Evolution, then replay this saga"
