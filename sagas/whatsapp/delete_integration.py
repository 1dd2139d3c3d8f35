"""Remove a WhatsApp integration from all three places, and tell the workers."""

from typing import ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from evosaga.sagas.definition import InCommit, Retry, Saga, compensatable, pivot, retryable
from evosaga.sagas.whatsapp import admission, row_dry_run, row_refusals
from evosaga.sagas.whatsapp.arbitration import DELETE_BESIDE
from evosaga.sagas.whatsapp.steps import (
    instance_removal,
    integration_row,
    notify_workers,
    routing_key,
)
from evosaga.sagas.whatsapp.types import ExistingName


class DeleteIntegration(BaseModel):
    """The ``data`` of an ``integration.delete`` command."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    asks: ClassVar[Literal["delete"]] = "delete"

    instance_name: ExistingName
    organization_id: UUID | None = None


DELETE_INTEGRATION: Final = Saga(
    name="delete-integration",
    version=1,
    command="integration.delete",
    input=DeleteIntegration,
    admit=admission.TOGETHER,
    on_conflict=DELETE_BESIDE,
    rehearse=row_dry_run.tried,
    steps=(
        compensatable(
            "mark",
            do=InCommit(integration_row.mark_deleting, row_refusals.understood),
            undo=InCommit(integration_row.unmark_deleting, row_refusals.understood),
            probe=integration_row.probe_marked,
        ),
        pivot(
            "evolution",
            do=instance_removal.delete_instance,
            retry=Retry(attempts=10, first=1.0),
            probe=instance_removal.probe_removal,
        ),
        retryable(
            "postgres",
            do=InCommit(integration_row.delete_integrations, row_refusals.understood),
            probe=integration_row.probe_deleted,
        ),
        retryable("cache", do=routing_key.invalidate, probe=routing_key.probe_invalidated),
        retryable("notify", do=notify_workers.announce_removed),
    ),
)
