"""What ``evosaga doctor`` says of secret keys that others use and this one does not have."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from orchestrator.cli.finding import Finding
from orchestrator.cli.tables import printable

if TYPE_CHECKING:
    from events.database import Pool
    from orchestrator.config import Settings


async def look_for_secret_keys(pool: Pool, settings: Settings) -> AsyncGenerator[Finding, None]:
    """Sagas that a worker with these settings could not go on with."""
    from orchestrator.config import split_secrets
    from orchestrator.secret_keys import CURE, unknown_keys
    from sagas.ownership import KeyRing

    if settings.secret_key is None:
        return
    for said in await unknown_keys(pool, KeyRing(split_secrets(settings.secret_key))):
        yield Finding("secret key", "bad", printable(said), CURE)
