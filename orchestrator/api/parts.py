"""What the HTTP API stands on: the parts of a running process, with or without a worker."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from events.database import Pool
from events.log import EventLog
from orchestrator.config import Settings
from orchestrator.engine import Engine
from orchestrator.intake.gate import Gate
from orchestrator.worker import CommandReader
from sagas.catalogue import Catalogue
from sagas.world import World


@dataclass(frozen=True, slots=True)
class Parts:
    """``engine``, ``reader`` and ``failed`` are there when a worker runs in this process."""

    settings: Settings
    pool: Pool
    redis: Redis
    log: EventLog
    world: World
    catalogue: Catalogue
    gate: Gate
    engine: Engine | None = None
    reader: CommandReader | None = None
    failed: asyncio.Future[None] | None = None
    """Fails when a part of the worker ends that never should."""


def parts_of(connection: HTTPConnection) -> Parts:
    """The parts behind the application that is being asked."""
    parts: Parts = connection.app.state.parts
    return parts


Here = Annotated[Parts, Depends(parts_of)]
"""For a route's signature: ``async def route(here: Here)``."""
