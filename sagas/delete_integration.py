"""Remove a WhatsApp integration from all three places, and tell the workers."""

from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from sagas.definition import InCommit, Retry, Saga, compensatable, pivot, retryable
from sagas.steps import cache, evolution, notify, postgres
from sagas.vocabulary import InstanceName


class DeleteIntegration(BaseModel):
    """The ``data`` of an ``integration.delete`` command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_name: InstanceName
    organization_id: UUID | None = None


DELETE_INTEGRATION: Final = Saga(
    name="delete-integration",
    version=1,
    command="integration.delete",
    input=DeleteIntegration,
    admit=postgres.admit_delete,
    steps=(
        compensatable(
            "mark",
            do=InCommit(postgres.mark_deleting),
            undo=InCommit(postgres.unmark_deleting),
        ),
        pivot("evolution", do=evolution.delete_instance, retry=Retry(attempts=10, first=1.0)),
        retryable("postgres", do=InCommit(postgres.delete_integrations)),
        retryable("cache", do=cache.invalidate),
        retryable("notify", do=notify.announce_removed),
    ),
)
