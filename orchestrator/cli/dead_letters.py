"""The verb ``letters``: show or delete dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.show import clock

if TYPE_CHECKING:
    from evosaga.events.dead_letters import StoredDeadLetter
    from evosaga.orchestrator.config.settings import Settings


def letters(
    *,
    limit: params.Page = 20,
    remove: Annotated[tuple[params.Letter, ...], Parameter(consume_multiple=1)] = (),
    out: params.Out,
) -> int:
    """Show the newest, or remove some.

    Args:
        remove: remove these, by the ids that are shown
    """
    with connections.servers(out) as settings:
        return asyncio.run(_letters(settings, limit, remove, out))


async def _letters(settings: Settings, limit: int, remove: Sequence[str], out: Output) -> int:
    from evosaga.events import dead_letters as letters

    async with AsyncExitStack() as stack:
        if not remove:
            redis = await stack.enter_async_context(connections.redis(settings))
        else:
            pool = await stack.enter_async_context(connections.postgres(settings))
            redis = await stack.enter_async_context(connections.own_redis(settings, pool))
            gone = await letters.delete(redis, remove)
            if gone < len(set(remove)):
                said = f"{gone} removed; the others are not there: see `evosaga letters`"
                raise CliError(WRONG, said)
            return _tell_removed(gone, out)
        found, more = await letters.newest(redis, limit)
    letters_ = [_described(letter) for letter in found]
    if out.json:
        out.data({"letters": letters_, "more": more})
        return DONE
    draw_letters(letters_, out)
    if more:
        out.note(f"{more} older ones are there: --limit {min(500, len(found) + more)}")
    return DONE


def _tell_removed(gone: int, out: Output) -> int:
    if out.json:
        out.data({"removed": gone})
    else:
        out.line(f"removed {gone}")
    return DONE


def draw_letters(found: Sequence[Mapping[str, Any]], out: Output) -> None:
    """A table of them; each has the fields of ``--json``."""
    if not found:
        out.note("there is no dead letter")
        return
    out.table(
        [
            {
                "letter": letter["letter_id"],
                "came": clock(datetime.fromisoformat(letter["came_at"])),
                "code": letter["code"],
                "command": _command_id(letter["data"]),
                "why": letter["message"],
            }
            for letter in found
        ],
        wrap=("command", "why"),
    )
    out.note("whole, with what was sent: --json; read and done with: --remove LETTER …")


def _described(letter: StoredDeadLetter) -> dict[str, Any]:
    """For programs, with what was sent; bytes that are no UTF-8 as escapes."""
    return {
        "letter_id": letter.id,
        "came_at": letter.came_at.isoformat(),
        "message_id": letter.message_id,
        "code": letter.code,
        "message": letter.message,
        "deliveries": letter.deliveries,
        "data": _readable(letter.data),
        "fields": {name: _readable(value) for name, value in letter.others.items()},
    }


def _readable(sent: bytes) -> str:
    return sent.decode(errors="backslashreplace")


def _command_id(data: str) -> str:
    """The id of what was sent, as far as it can be read."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    id_ = body.get("id") if isinstance(body, dict) else None
    return id_[:80] if isinstance(id_, str) else ""
