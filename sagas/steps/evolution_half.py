"""Half an instance: one of Evolution's two views has it, and the other has not.

A row without an instance in memory can't be deleted while CACHE_REDIS_SAVE_INSTANCES is true, as
it is shipped: the DELETE looks in memory alone and says 404 for ever. A create of the same name
gets past the same look, can't insert its row, answers 400, and then Evolution removes by name
whatever bears it (seen on 2.3.6 and 2.3.7). So that is how a row of ours is removed.

What is only in memory shows no token, so nobody can prove whose it is: it is left to a person.
"""

from typing import Final

from sagas.steps.evolution_api import Seen
from sagas.steps.verdicts import Answer, Sight
from sagas.world import StepContext

PATIENCE: Final = 4
"""The attempt that does it. While Evolution starts, what is not loaded yet looks the same, and a
moment after a DELETE what is about to go does, too."""


async def provoke_clean_up(ctx: StepContext, name: str, token: str) -> Answer:
    """Have Evolution remove a row whose token was just seen to be ours.

    What it answers counts: should the row have gone meanwhile, an instance of ours is made (201).
    """
    wish = {"instanceName": name, "integration": "EVOLUTION", "token": token, "qrcode": False}
    return await ctx.evolution.create(wish)


def remains(asked: str, name: str, answer: Answer, seen: Seen) -> str:
    """What is left after something was asked for, and what a person can do about half of one."""
    told = f"Evolution answered {answer.text} to the {asked} and {name} remains"
    if seen.sight is not Sight.HALF:
        return told
    # A start loads what has a row, and forgets what is only in memory.
    return f"{told} by half ({seen.evidence}): restart Evolution, then replay this saga"
