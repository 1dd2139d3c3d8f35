"""What ``doctor`` says of the receivers of alerts and events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli.check import Finding

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings

_CHECK = "alerts"


async def check_receivers(pool: Pool, settings: Settings) -> AsyncGenerator[Finding, None]:
    """Who is told, and who does not take it."""
    from evosaga.orchestrator.config.receivers import receivers_of
    from evosaga.orchestrator.maintenance.alerts.view import receivers, removed
    from evosaga.orchestrator.queries.attention import counted

    found = await receivers(pool, receivers_of(settings))
    if not any(one.alerts for one in found):
        cure = "set EVOSAGA_ALERTS_URL; until then: evosaga alerts"
        yield Finding(_CHECK, "warn", "no receiver is configured for them", cure)
    for one in found:
        if one.given_up:
            said = f"to {one.name} {counted(one.given_up, 'message')} given up: {one.error}"
            yield Finding(_CHECK, "warn", said, f"then try it: evosaga alerts test {one.name}")
        elif one.failing_since is not None:
            since = one.failing_since.isoformat(timespec="seconds")
            said = f"{one.name} accepts nothing since {since}: {one.error}"
            yield Finding(_CHECK, "warn", said, f"try it: evosaga alerts test {one.name}")
        elif one.alerts:
            yield Finding(_CHECK, "ok", f"{one.name} is sent alerts, as {one.format}")
    for one in await removed(pool, receivers_of(settings)):
        many = counted(one.waiting + one.given_up, "message")
        said = f"{many} for {one.name}, which is no longer configured"
        cure = "they are given up after an hour; configure it again to have later ones"
        yield Finding(_CHECK, "warn", said, cure)
