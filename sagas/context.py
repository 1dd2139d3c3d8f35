"""What a step may touch, and what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import httpx
from redis.asyncio import Redis

from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.unconfigured import server_named
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.table_fit import Table
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

_STARTING: Final = 6
"""Quiet times (a minute) for which a server that starts may still load what it has."""


@dataclass(frozen=True, slots=True)
class World:
    """The systems outside, opened once by the process and shared by all sagas.

    ``servers``: the Evolution servers by name, ``default`` among them, each with a breaker and a
    bulkhead of its own.
    ``http`` is for sagas of your own; Evolution has a client that knows its traps.
    ``quiet_seconds``: an effect whose outcome is unknown may still land for this long.
    ``settle_seconds``: a contested name is looked at again after that.
    ``watch_after``: when, in seconds, an instance that should not be there is looked for again.
    ``create_deadline``: a create that is not done after so many seconds is undone; None: never.
    ``pool``: our Postgres, for probes alone; an effect there joins the commit of its event.
    ``table``: what is known of the rules of ``healthcare.integrations``.
    """

    servers: Mapping[str, EvolutionApi]
    redis: Redis
    http: httpx.AsyncClient
    keys: KeyRing
    public_url: str | None = None
    webhook_hosts: frozenset[str] = frozenset()
    quiet_seconds: float = 10.0
    settle_seconds: float = 1.0
    watch_after: tuple[float, ...] = (10.0, 60.0, 300.0, 1800.0)
    create_deadline: float | None = None
    pool: Any = None
    table: Table = field(default_factory=Table)

    def server(self, name: str) -> EvolutionApi:
        """The Evolution server of that name, or what stands in for one that is not configured."""
        return server_named(self.servers, name)


@dataclass(frozen=True, slots=True)
class StepContext:
    """One attempt of one step.

    ``input`` is the saga's input model, ``facts`` what admission found, ``results`` what the
    steps before (and this one, when it is being undone) recorded. ``in_doubt``: an earlier
    attempt may have had its effect; look before you act. ``doubt_age``: seconds since the newest
    attempt whose outcome is unknown; None: there was none.
    ``last_code`` is that of the failure before. ``age`` is the saga's, in seconds. ``was_done``,
    for an undo: the step said so, so there is no doubt that it happened.
    """

    saga_id: UUID
    input: Any
    world: World
    attempt: int = 1
    in_doubt: bool = False
    last_code: str | None = None
    was_done: bool = False
    age: float = 0.0
    doubt_age: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def quiet_left(self) -> float:
        """Seconds for which an attempt in doubt may still have its effect; not above 0: over."""
        return self.world.quiet_seconds - (self.doubt_age or 0.0)

    @property
    def doubt_is_young(self) -> bool:
        """Whether an attempt in doubt is so new that a server which started since may be at it."""
        return self.doubt_age is not None and self.doubt_age < _STARTING * self.world.quiet_seconds

    @property
    def server(self) -> str:
        """The name of the Evolution server that this saga's instance lives on."""
        return str(self.facts.get("server", DEFAULT_SERVER))

    @property
    def evolution(self) -> EvolutionApi:
        """That server, pinned when the saga started."""
        return self.world.server(self.server)
