"""Remove a WhatsApp integration from all three places, and tell the workers."""

from typing import ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from sagas.definition import InCommit, Retry, Saga, compensatable, pivot, retryable
from sagas.steps import admission, cache, evolution, notify, postgres, rehearsing
from sagas.vocabulary import ExistingName


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
    admit=admission.admit,
    rehearse=rehearsing.tried,
    steps=(
        compensatable(
            "mark",
            do=InCommit(postgres.mark_deleting, rehearsing.understood),
            undo=InCommit(postgres.unmark_deleting, rehearsing.understood),
            probe=postgres.probe_marked,
        ),
        pivot(
            "evolution",
            do=evolution.delete_instance,
            retry=Retry(attempts=10, first=1.0),
            probe=evolution.probe_removal,
        ),
        retryable(
            "postgres",
            do=InCommit(postgres.delete_integrations, rehearsing.understood),
            probe=postgres.probe_deleted,
        ),
        retryable("cache", do=cache.invalidate, probe=cache.probe_invalidated),
        retryable("notify", do=notify.announce_removed),
    ),
)
