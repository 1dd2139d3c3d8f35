"""``evosaga replay --plan``: what a replay would do to the world, changing nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli import bulk, connections
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED
from evosaga.orchestrator.cli.output import Output, printable
from evosaga.orchestrator.cli.params import Selection

if TYPE_CHECKING:
    from evosaga.orchestrator.commands.replay_plan import ReplayPlan
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.queries.sagas import SagaView

_AT_ONCE: Final = 16
_STYLES: Final = {
    "reuse": "green",
    "adopt": "green",
    "redo": "cyan",
    "undo first": "yellow",
    "blocked": "bold red",
}


def show_plans(selection: Selection, out: Output) -> int:
    """The plan of each saga; 1 when any of them would be refused."""
    from evosaga.orchestrator.cli.run import require

    require(out)  # a look at the world needs Evolution and the keys to what is ours
    with connections.servers(out) as settings:
        return asyncio.run(_show(settings, selection, out))


async def _show(settings: Settings, selection: Selection, out: Output) -> int:
    from evosaga.orchestrator import app
    from evosaga.orchestrator.commands.replay import plan_of
    from evosaga.orchestrator.whatsapp.services import open_services

    known = app.registry()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        outside = await stack.enter_async_context(open_services(settings, pool, redis))
        sagas = await bulk.chosen(pool, selection)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(view: SagaView) -> ReplayPlan:
            async with gate:
                return await plan_of(pool, outside, known, view.saga_id)

        plans = await asyncio.gather(*map(look, sagas))
    return tell_plans(sagas, plans, out, single=len(selection.references) == 1)


def tell_plans(
    sagas: Sequence[SagaView], plans: Sequence[ReplayPlan], out: Output, *, single: bool
) -> int:
    """Say what each replay would do; 1 when any of them would be refused."""
    told = list(zip(sagas, plans, strict=True))
    if out.json:
        documents = [{"saga_id": view.saga_id, **plan.as_dict()} for view, plan in told]
        out.data(documents[0] if single else {"plans": documents})
    else:
        for view, plan in told:
            _tell(view, plan, out)
        if not told:
            out.note("no saga fits")
    return DONE if all(plan.allowed for plan in plans) else UNFINISHED


def _tell(view: SagaView, plan: ReplayPlan, out: Output) -> None:
    out.line(f"{view.saga_id}  {view.saga}")
    style = "" if plan.allowed else "bold red"
    out.wrapped(plan.headline, indent=2, style=style)
    if out.terminal:
        _draw(plan, out)
    else:
        rows = [
            {"step": line.step, "action": line.action, "evidence": line.evidence}
            for line in plan.lines
        ]
        out.table(rows)
    out.line()


def _draw(plan: ReplayPlan, out: Output) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for line in plan.lines:
        style = _STYLES[line.action]
        evidence = Text(printable(line.evidence), style="dim", overflow="fold")
        table.add_row("   ", line.step, Text(line.action, style=style, no_wrap=True), evidence)
    out.console.print(table)
