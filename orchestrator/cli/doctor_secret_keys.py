"""What ``evosaga doctor`` says of secret keys that others use and this one does not have."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.output import printable

if TYPE_CHECKING:
    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings


async def check_secret_keys(pool: Pool, settings: Settings) -> AsyncGenerator[Finding, None]:
    """Sagas that a worker with these settings could not go on with."""
    from evosaga.orchestrator.config.settings import split_secrets
    from evosaga.orchestrator.whatsapp.secret_keys import CURE, unknown_keys
    from evosaga.sagas.whatsapp.ownership import KeyRing

    if settings.secret_key is None:
        return
    for said in await unknown_keys(pool, KeyRing(split_secrets(settings.secret_key))):
        yield Finding("secret key", "bad", printable(said), CURE)
