"""What ``doctor`` says of steps that block the event loop of a worker, as the workers report it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.output import printable

if TYPE_CHECKING:
    from evosaga.events.database import Pool


async def check_blocking(pool: Pool) -> AsyncGenerator[Finding, None]:
    """A warning for each step that did lately."""
    rows = await pool.fetch(_BLOCKED)
    for row in rows:
        yield Finding("event loop", "warn", printable(row["message"]), row["cure"])
    if not rows:
        yield Finding("event loop", "ok", "no step is known to block it")


_BLOCKED: Final = """
SELECT message, cure FROM evosaga.alerts
WHERE code = 'loop_blocked' AND resolved_at IS NULL ORDER BY key LIMIT 10
"""
