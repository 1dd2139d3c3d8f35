"""``recover`` over HTTP, with a key of no organization."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.cli.recover import tell_healed, tell_plan
from evosaga.orchestrator.cli.recover_report import draw
from evosaga.orchestrator.cli.remote.session import connect, wait_of

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target


def recover(*, fix: bool = False, timeout: float = 120.0, target: Target, out: Output) -> int:
    """Show what that log has forgotten; with ``--fix`` heal it."""
    return asyncio.run(_recover(target, fix, timeout, out))


async def _recover(target: Target, fix: bool, timeout: float, out: Output) -> int:
    wait = wait_of(timeout)
    async with connect(target, looks=True) as client:
        plan = await client.get("/recover")
        wrong = bool(plan["went_back"] or plan["commands"] or plan["instances"])
        if not fix or not wrong:
            return tell_plan(plan, wrong, out)
        if not out.json:
            draw(plan, out)
        done: dict[str, Any] = await client.post("/recover", params={"wait": wait})
    return tell_healed(plan, done, out)
