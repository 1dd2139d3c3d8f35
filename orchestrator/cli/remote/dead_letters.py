"""``letters`` over HTTP, with a key of no organization."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli.dead_letters import draw_letters, one_of, tell_done
from evosaga.orchestrator.cli.errors import DONE
from evosaga.orchestrator.cli.remote.session import connect
from evosaga.orchestrator.client import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target


def letters(
    *,
    limit: int = 20,
    remove: tuple[str, ...] = (),
    send_again: tuple[str, ...] = (),
    target: Target,
    out: Output,
) -> int:
    """Show the newest dead letters, remove some, or send some again."""
    one_of(remove, send_again)
    if remove or send_again:
        return asyncio.run(_act(target, remove, send_again, out))
    return asyncio.run(_letters(target, limit, out))


async def _letters(target: Target, limit: int, out: Output) -> int:
    async with connect(target) as client:
        page = await client.get("/dead-letters", {"limit": str(limit)})
    if out.json:
        out.data({"letters": page["letters"], "more": page["cursor"] is not None})
        return DONE
    draw_letters(page["letters"], out)
    if page["cursor"] is not None:
        out.note(f"older ones are there: --limit {min(500, 2 * limit)}")
    return DONE


async def _act(
    target: Target, remove: Sequence[str], send_again: Sequence[str], out: Output
) -> int:
    """One after the other, in the order that is given: commands sent again keep it."""
    done = 0
    async with connect(target) as client:
        for letter in dict.fromkeys(remove or send_again):
            path = f"/dead-letters/{letter}"
            try:
                await (client.remove(path) if remove else client.post(f"{path}/send"))
            except NotFound as error:
                if error.code != "unknown_letter":
                    raise
                if error.tries == 1:
                    continue
                # The try before was obeyed, and its answer lost on the way.
            done += 1
    return tell_done("removed" if remove else "sent", done, remove or send_again, out)
