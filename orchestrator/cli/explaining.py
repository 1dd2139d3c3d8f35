"""``evosaga why``: what a saga waits for, and what can be done about it."""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import TYPE_CHECKING, Final

from orchestrator.cli import places
from orchestrator.cli.output import Output
from orchestrator.cli.reading import clock, find
from orchestrator.cli.trouble import DONE
from orchestrator.cli.wrapping import say

if TYPE_CHECKING:
    from orchestrator.config import Settings
    from orchestrator.explaining.reason import Why


def why(arguments: argparse.Namespace, out: Output) -> int:
    """Explain one saga."""
    with places.servers(out, redis=False) as settings:
        return asyncio.run(_why(settings, arguments.reference, out))


async def _why(settings: Settings, reference: str, out: Output) -> int:
    from orchestrator.explaining.why import why_of
    from sagas import catalogue

    async with places.postgres(settings) as pool:
        view = await find(pool, reference)
        answer = await why_of(pool, catalogue.load(), view)
    if out.json:
        out.data({"saga_id": view.saga_id, "status": view.status, **answer.as_dict()})
    else:
        _tell(answer, out)
    return DONE


def _tell(answer: Why, out: Output) -> None:
    say(answer.headline, out, style="bold")
    for detail in answer.details:
        say(detail, out, indent=2)
    if answer.next_at is not None:
        said = "This attempt has until {}." if answer.in_flight else _GOES_ON
        say(said.format(clock(answer.next_at)), out, indent=2)
    if answer.cure is not None:
        _tell_cure(answer.cure, out)


_GOES_ON: Final = "It goes on by itself, by {} at the latest."


def _tell_cure(cure: str, out: Output) -> None:
    """What to do; at a terminal a line for each command, so that it can be copied."""
    if not out.terminal:
        out.line(f"What you can do: {cure}")
        return
    say("What you can do:", out, style="cyan")
    for part in re.split(r"[:;,] (?=evosaga )|; ", cure):
        command = part.startswith("evosaga ")
        say(part, out, indent=4 if command else 2, style="cyan" if command else "")
