"""A client of evosaga's HTTP API for Python backends.

    from evosaga.orchestrator.client import AlreadyExists, Client

    async with Client("http://127.0.0.1:8080", "the-key") as evosaga:
        try:
            made = await evosaga.create(organization_id, clinic_id, "Clínica Sol")
        except AlreadyExists as error:
            made = error.existing_instance

Every command carries an id, so one whose answer got lost is asked for again without being done
twice. Whatever goes wrong is an ``EvosagaError``, and its class says whose it is to mend.
"""

from evosaga.orchestrator.client.client import Client
from evosaga.orchestrator.client.errors import (
    AlreadyExists,
    BadRequest,
    Busy,
    Conflict,
    EvosagaError,
    NotAllowed,
    NotFound,
    NotYet,
    Parked,
    RolledBack,
    ServerFault,
    Unavailable,
)
from evosaga.orchestrator.client.models import (
    Created,
    Deleted,
    Event,
    QrCode,
    Saga,
    SagaPage,
    Submitted,
)

__all__ = [
    "AlreadyExists",
    "BadRequest",
    "Busy",
    "Client",
    "Conflict",
    "Created",
    "Deleted",
    "Event",
    "EvosagaError",
    "NotAllowed",
    "NotFound",
    "NotYet",
    "Parked",
    "QrCode",
    "RolledBack",
    "Saga",
    "SagaPage",
    "ServerFault",
    "Submitted",
    "Unavailable",
]
