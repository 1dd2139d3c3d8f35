"""The verb ``appends``: whether appends commit one after another or in parallel, and the switch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output

if TYPE_CHECKING:
    from evosaga.events.append_order import AppendOrder
    from evosaga.orchestrator.config.settings import Settings


def appends(
    *,
    parallel: bool = False,
    in_order: bool = False,
    out: params.Out,
) -> int:
    """Show how appends to the log are ordered, or switch it, for all workers at once.

    Args:
        parallel: let commits overlap; refused while a worker of an older release is alive
        in_order: one commit after another, which releases without this verb need
    """
    if parallel and in_order:
        raise CliError(WRONG, "--parallel and --in-order exclude each other: give one of them")
    wanted = parallel if parallel or in_order else None
    with connections.servers(out, redis=False) as settings:
        return asyncio.run(_appends(settings, wanted, out))


async def _appends(settings: Settings, parallel: bool | None, out: Output) -> int:
    from evosaga.events import append_order

    async with connections.postgres(settings) as pool:
        if parallel is None:
            now = await append_order.read(pool)
        else:
            try:
                now = await append_order.switch(pool, parallel=parallel)
            except append_order.SwitchRefused as refusal:
                raise CliError(WRONG, f"nothing was changed: {refusal}") from refusal
    if out.json:
        out.data(
            {
                "parallel": now.parallel,
                "workers": now.workers,
                "older_workers": list(now.older),
                "longest_seconds": round(now.longest.total_seconds(), 3),
            }
        )
    else:
        _tell(now, out)
    return DONE


def _tell(now: AppendOrder, out: Output) -> None:
    if now.parallel:
        out.line("appends commit in parallel; back, before an older release: appends --in-order")
    else:
        out.line("appends commit one after another; to let them overlap: appends --parallel")
    for worker in now.older:
        out.note(f"{worker} is of an older release: it does not publish while they are parallel")
