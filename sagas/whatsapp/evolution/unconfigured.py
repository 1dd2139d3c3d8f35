"""Stand-in for a server that a saga is pinned to and this process has no settings for.

Its settings were taken away, or are missing here. Sagas on it are held, with a word on what to set,
and go on when it is configured again. Nothing is sent, nothing is concluded and nothing is undone.
"""

from collections.abc import Mapping
from typing import Any, Final

from evosaga.sagas.whatsapp.evolution.answers import SERVER_UNKNOWN, Answer
from evosaga.sagas.whatsapp.evolution.circuit_breaker import BreakerState
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi

_LATER: Final = 15.0
"""Seconds until the next look; settings change with a restart, which takes some, too."""


class UnconfiguredServer(EvolutionApi):
    """Stands in for it, and answers every question with the reason why it was not asked."""

    def __init__(self, name: str) -> None:
        super().__init__("http://not-configured.invalid", "")
        self._why = (
            f"this configuration has no Evolution server named {name}: "
            "put it (back) into EVOSAGA_EVOLUTION_SERVERS"
        )

    @property
    def state(self) -> BreakerState:
        """Open, and not by itself closed again."""
        return BreakerState("open", 0.0, self._why)

    async def instances(self) -> Answer:
        """No list either."""
        return await self._call()

    async def _call(self, *_: Any, **__: Any) -> Answer:
        return Answer(0, None, self._why, False, _LATER, SERVER_UNKNOWN)


def server_named(servers: Mapping[str, EvolutionApi], name: str) -> EvolutionApi:
    """The client of that server; of one that is not configured, its stand-in."""
    return servers.get(name) or UnconfiguredServer(name)
