"""The parts of a running process that the HTTP API uses, with or without a worker."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog
from evosaga.orchestrator.commands.consumer import CommandConsumer
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
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
    registry: SagaRegistry
    gate: CommandHandler
    engine: Engine | None = None
    reader: CommandConsumer | None = None
    failed: asyncio.Future[None] | None = None
    lease: Lease | None = None


def context_of(connection: HTTPConnection) -> AppContext:
    """The parts of the connection's application."""
    parts: AppContext = connection.app.state.parts
    return parts


Context = Annotated[AppContext, Depends(context_of)]
"""Route dependency: ``async def route(here: Context)``."""
