"""The product: a worker of the WhatsApp domain."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TypeAlias

from evosaga.orchestrator import worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.whatsapp.domain import WHATSAPP
from evosaga.orchestrator.worker import Broken as Broken
from evosaga.sagas.registry import SagaRegistry
from evosaga.sagas.whatsapp.services import Services

Worker: TypeAlias = worker.Worker[Services]


def running_worker(
    settings: Settings, sagas: SagaRegistry | None = None
) -> AbstractAsyncContextManager[Worker]:
    """A worker for WhatsApp; ``sagas``: others than this release's, with the same services."""
    return worker.running_worker(settings, replace(WHATSAPP, sagas=sagas or WHATSAPP.sagas))


async def serve_until(stop: asyncio.Event, settings: Settings) -> None:
    """Run it until ``stop`` is set. Raises ``Broken`` when one of its parts dies."""
    await worker.serve_until(stop, settings, WHATSAPP)
