"""The type of a worker that runs WhatsApp, which ``app.running_worker`` gives."""

from typing import TypeAlias

from evosaga.orchestrator import worker
from evosaga.sagas.whatsapp.services import Services

Worker: TypeAlias = worker.Worker[Services]
