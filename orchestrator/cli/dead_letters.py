"""The verb ``letters``: show dead letters, discard them or send them again."""

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
    send_again: Annotated[tuple[params.Letter, ...], Parameter(consume_multiple=1)] = (),
    out: params.Out,
) -> int:
    """Show the newest, remove some, or send some again.

    Args:
        remove: remove these, by the ids that are shown
        send_again: put these back on the stream of commands as they were sent
    """
    one_of(remove, send_again)
    with connections.servers(out) as settings:
        if remove or send_again:
            return asyncio.run(_act(settings, remove, send_again, out))
        return asyncio.run(_letters(settings, limit, out))


def one_of(remove: Sequence[str], send_again: Sequence[str]) -> None:
    """Raises ``CliError`` when both are asked for."""
    if remove and send_again:
        raise CliError(WRONG, "--remove and --send-again are two things: give one of them")


async def _act(
    settings: Settings, remove: Sequence[str], send_again: Sequence[str], out: Output
) -> int:
    from evosaga.events import dead_letters as letters

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        if remove:
            return tell_done("removed", await letters.delete(redis, remove), remove, out)
        found = await letters.some(redis, list(dict.fromkeys(send_again)))
        await letters.send_again(redis, found)
        return tell_done("sent", len(found), send_again, out)


async def _letters(settings: Settings, limit: int, out: Output) -> int:
    from evosaga.events import dead_letters as letters

    async with connections.redis(settings) as redis:
        found, more = await letters.newest(redis, limit)
    letters_ = [_described(letter) for letter in found]
    if out.json:
        out.data({"letters": letters_, "more": more})
        return DONE
    draw_letters(letters_, out)
    if more:
        out.note(f"{more} older ones are there: --limit {min(500, len(found) + more)}")
    return DONE


def tell_done(what: str, count: int, wanted: Sequence[str], out: Output) -> int:
    """Say how many were ``removed`` or ``sent``. Raises ``CliError`` when some are not there."""
    said = {"removed": f"removed {count}", "sent": f"sent {count} again"}[what]
    if count < len(set(wanted)):
        raise CliError(WRONG, f"{said}; the others are not there (any more): see `evosaga letters`")
    if out.json:
        out.data({what: count})
    else:
        out.line(said)
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
    out.note(
        "whole, with what was sent: --json; read and done with: --remove LETTER …; once the cause "
        "is mended: --send-again LETTER …"
    )


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
