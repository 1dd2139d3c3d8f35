"""The verb ``why``: what a saga waits for, and what can be done about it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.show import clock, find

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.queries.diagnosis import Diagnosis
    from evosaga.orchestrator.queries.sagas import SagaView


def why(reference: params.Reference, /, *, out: params.Out) -> int:
    """Explain one saga."""
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_why(settings, reference, out))


async def _why(settings: Settings, reference: str, out: Output) -> int:
    from evosaga.orchestrator import app
    from evosaga.orchestrator.config.receivers import runbook_of
    from evosaga.orchestrator.queries.why import why_of
    from evosaga.orchestrator.whatsapp.explain import explainer

    async with connections.postgres(settings) as pool:
        view = await find(pool, reference)
        answer = await why_of(pool, app.registry(), view, explainer())
    return tell(view, answer, out, runbook_of(settings, view.code))


def tell(view: SagaView, answer: Diagnosis, out: Output, runbook: str | None) -> int:
    """Say why the saga is where it is, and where more is said of its code; the exit code."""
    if out.json:
        told = {"saga_id": view.saga_id, "status": view.status, **answer.as_dict()}
        out.data(told | {"runbook": runbook})
        return DONE
    _tell(answer, out)
    if runbook is not None:
        where = f"{runbook} on the dashboard" if runbook.startswith("/") else runbook
        out.wrapped(f"More on {view.code}: {where}", indent=2)
    return DONE


def _tell(answer: Diagnosis, out: Output) -> None:
    out.wrapped(answer.headline, style="bold")
    for detail in answer.details:
        out.wrapped(detail, indent=2)
    if answer.next_at is not None:
        said = "This attempt has until {}." if answer.in_flight else _GOES_ON
        out.wrapped(said.format(clock(answer.next_at)), indent=2)
    if answer.cure is not None:
        _tell_cure(answer.cure, out)


_GOES_ON: Final = "It goes on by itself, by {} at the latest."


def _tell_cure(cure: str, out: Output) -> None:
    """What to do; at a terminal a line for each command, so that it can be copied."""
    if not out.terminal:
        out.line(printable(f"What you can do: {cure}"))
        return
    out.wrapped("What you can do:", style="cyan")
    for part in re.split(r"[:;,] (?=evosaga )|; ", cure):
        command = part.startswith("evosaga ")
        out.wrapped(part, indent=4 if command else 2, style="cyan" if command else "")
