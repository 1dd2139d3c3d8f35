"""Checks of ``evosaga doctor``: do instances have the webhook and settings they should have?"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli import connections
from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.errors import CliError

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings
    from evosaga.orchestrator.whatsapp.health.monitor import HealthReport

_MOST: Final = 500
"""Webhooks to ask for: a check is no inventory. ``evosaga reconcile`` asks for all of them."""


async def check_instances(
    settings: Settings, before: Sequence[Finding]
) -> AsyncGenerator[Finding, None]:
    """One line; none when a server or key that it needs is missing, which ``before`` holds."""
    if settings.secret_key is None or settings.evolution_api_key is None:
        return
    if any(it.verdict == "bad" and it.check.startswith(_NEEDS) for it in before):
        return
    done = await _examined(settings)
    if done is None or not done.webhooks:
        return
    lacking = done.summary()["states"].get("incomplete", 0)
    said = f"{done.webhooks} of {len(done.patients)} looked at, "
    if not lacking:
        yield Finding("instances", "ok", f"{said}webhooks and settings are as they should be")
        return
    said += f"{lacking} without the webhook or the settings that they should have"
    cure = "workers set them again by themselves; now, and which they are: evosaga reconcile --fix"
    yield Finding("instances", "bad", said, cure)


_NEEDS: Final = ("postgres", "schema", "evolution")


async def _examined(settings: Settings) -> HealthReport | None:
    import asyncpg

    from evosaga.events import streams
    from evosaga.orchestrator.config.settings import SettingsError
    from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, examine
    from evosaga.orchestrator.whatsapp.reconciliation.inventory import ObservationFailed
    from evosaga.orchestrator.whatsapp.services import open_services

    assert settings.redis_url is not None
    redis = streams.connect(settings.redis_url)  # which is not used, and so need not answer
    try:
        with contextlib.suppress(
            CliError, ObservationFailed, SettingsError, asyncpg.PostgresError, OSError
        ):
            async with (
                connections.postgres(settings) as pool,
                open_services(settings, pool, redis) as outside,
            ):
                return await examine(HealthMonitor(pool, outside), eager=True, webhooks=_MOST)
    finally:
        await redis.aclose()
    return None
