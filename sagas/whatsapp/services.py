"""What the steps of WhatsApp's sagas may touch, and what they ask of an attempt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import httpx
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.sagas.context import StepContext
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.unconfigured import server_named
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.table_fit import Table
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

_STARTING: Final = 6
"""Quiet times (a minute) for which a server that starts may still load what it has."""


@dataclass(frozen=True, slots=True)
class Services:
    """Opened once by the process and shared by all its sagas.

    ``servers``: the Evolution servers by name, ``default`` among them, each with a breaker and a
    bulkhead of its own.
    ``http`` is for sagas of your own; Evolution has a client that knows its traps.
    ``quiet_seconds``: an effect whose outcome is unknown may still land for this long.
    ``settle_seconds``: a contested name is looked at again after that.
    ``watch_after``: when, in seconds, an instance that should not be there is looked for again.
    ``maintenance_rate``: calls a second that upkeep makes to one server.
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
    maintenance_rate: float = 100.0
    pool: "Pool | None" = None
    table: Table = field(default_factory=Table)

    def server(self, name: str) -> EvolutionApi:
        """The Evolution server of that name, or what stands in for one that is not configured."""
        return server_named(self.servers, name)


Context: TypeAlias = StepContext[Any, Services]
"""An attempt of a WhatsApp step; several sagas with inputs of their own share most steps."""


def server_name(ctx: Context) -> str:
    """The name of the Evolution server that this saga's instance lives on."""
    return str(ctx.facts.get("server", DEFAULT_SERVER))


def evolution_of(ctx: Context) -> EvolutionApi:
    """The Evolution server of this saga, pinned when the saga started."""
    return ctx.services.server(server_name(ctx))


def quiet_left(ctx: Context) -> float:
    """Seconds for which an attempt in doubt may still have its effect; not above 0: over."""
    return ctx.services.quiet_seconds - (ctx.doubt_age or 0.0)


def doubt_is_young(ctx: Context) -> bool:
    """Whether an attempt in doubt is so new that a server which started since may be at it."""
    return ctx.doubt_age is not None and ctx.doubt_age < _STARTING * ctx.services.quiet_seconds
