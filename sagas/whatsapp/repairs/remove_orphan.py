"""Remove an instance that no row names: what an undone create, or older code, left behind."""

from typing import Annotated, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from evosaga.sagas.definition import Retry, Saga, pivot, retryable
from evosaga.sagas.whatsapp.repairs import admission
from evosaga.sagas.whatsapp.steps import instance_removal, notify_workers, routing_key
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER, SHAPES, ExistingName, ServerName


class RemoveOrphan(BaseModel):
    """The ``data`` of an ``instance.remove`` command.

    It says how the instance is known again right before it is removed: by the birthmark of the
    saga that made it, or by the hash of the token that older code gave it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_name: ExistingName
    organization_id: UUID | None = None
    created_by: UUID | None = None
    key_id: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{8}\z")] | None = None
    token_hash: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{16}\z")] | None = None
    server: ServerName = Field(DEFAULT_SERVER, exclude_if=lambda server: server == DEFAULT_SERVER)

    @model_validator(mode="after")
    def _known_again(self) -> Self:
        birthmark = self.created_by is not None and self.key_id is not None
        if birthmark == (self.token_hash is not None) or birthmark != (self.created_by is not None):
            raise ValueError("give either created_by and key_id, or token_hash")
        return self


REMOVE_ORPHAN: Final = Saga(
    name="remove-orphan",
    version=1,
    command="instance.remove",
    internal=True,
    input=RemoveOrphan,
    patterns=SHAPES,
    admit=admission.admit_removal,
    steps=(
        pivot(
            "evolution", do=instance_removal.delete_instance, retry=Retry(attempts=10, first=1.0)
        ),
        retryable("cache", do=routing_key.invalidate),
        retryable("notify", do=notify_workers.announce_removed),
    ),
)
