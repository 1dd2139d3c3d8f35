"""The parts of a running process that the HTTP API uses, with or without a worker."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.events.replica import Replica
from evosaga.orchestrator.app import OURS
from evosaga.orchestrator.commands.consumer import CommandConsumer
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.domain import Domains
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.resources import ResourceUnavailable, ServicesBySaga
from evosaga.orchestrator.queries import attention
from evosaga.orchestrator.whatsapp.attention import Situation, situation
from evosaga.orchestrator.whatsapp.domain import WHATSAPP
from evosaga.orchestrator.whatsapp.integrations.names import names_of
from evosaga.sagas.explainer import PLAIN, Explainer
from evosaga.sagas.registry import SagaRegistry
from evosaga.sagas.whatsapp.services import Services


@dataclass(frozen=True, slots=True)
class AppContext:
    """``engine``, ``reader`` and ``lease`` are set when a worker runs in this process.

    ``failed`` fails when a part of it ends unexpectedly.
    """

    settings: Settings
    pool: Pool
    redis: Redis
    log: EventLog
    services: Services
    """WhatsApp's, without a server where there is no WhatsApp. Those of all: ``gate.services``."""
    registry: SagaRegistry
    gate: CommandHandler
    engine: Engine | None = None
    reader: CommandConsumer | None = None
    failed: asyncio.Future[None] | None = None
    lease: Lease | None = None
    domains: Domains | None = None
    """None: WhatsApp alone."""
    replica: Replica | None = None
    """Where lists may be read, and nothing that is decided by."""

    @property
    def whatsapp(self) -> bool:
        """Whether WhatsApp is one of this process's domains."""
        return self.domains is None or any(one.package == OURS for one in self.domains.each)

    async def situation(self, organization_id: UUID | None = None) -> Situation:
        """How things are now. Raises what Postgres raises."""
        if self.whatsapp:
            return await situation(self.pool, organization_id)
        return Situation(**asdict(await attention.situation(self.pool, organization_id)))

    async def names_of(self, saga_ids: Sequence[UUID]) -> dict[UUID, str]:
        """The clinics' names by saga, as far as they are known."""
        return await names_of(self.pool, saga_ids) if self.whatsapp else {}

    def explain(self, saga: str) -> Explainer:
        """What the domain of that saga has to say of it."""
        if self.domains is None:
            return WHATSAPP.explain(self.services)
        domain = self.domains.of_saga(saga)
        if domain is None or not isinstance(self.gate.services, ServicesBySaga):
            return PLAIN
        try:
            return domain.explain(self.gate.services.of(saga))
        except ResourceUnavailable:
            return PLAIN


def context_of(connection: HTTPConnection) -> AppContext:
    """The parts of the connection's application."""
    parts: AppContext = connection.app.state.parts
    return parts


Context = Annotated[AppContext, Depends(context_of)]
"""Route dependency: ``async def route(here: Context)``."""
