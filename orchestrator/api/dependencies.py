"""What the HTTP API stands on: the parts of a running process, with or without a worker."""

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
from evosaga.sagas.registry import SagaRegistry
from evosaga.sagas.whatsapp.services import Services


@dataclass(frozen=True, slots=True)
class AppContext:
    """``engine``, ``reader`` and ``failed`` are there when a worker runs in this process."""

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
    """Fails when a part of the worker ends that never should."""


def context_of(connection: HTTPConnection) -> AppContext:
    """The parts behind the application that is being asked."""
    parts: AppContext = connection.app.state.parts
    return parts


Context = Annotated[AppContext, Depends(context_of)]
"""For a route's signature: ``async def route(here: Here)``."""
