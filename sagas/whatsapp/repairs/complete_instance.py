"""Set the webhook and settings of an instance again: Evolution lost or never wrote them."""

from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from evosaga.sagas.definition import Retry, Saga, compensatable
from evosaga.sagas.whatsapp.repairs import completeness, verification
from evosaga.sagas.whatsapp.types import SHAPES, InstanceName


class CompleteInstance(BaseModel):
    """The ``data`` of an ``instance.complete`` command: which row, and which instance it names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    integration_id: UUID
    instance_name: InstanceName


COMPLETE_INSTANCE: Final = Saga(
    name="complete-instance",
    version=1,
    command="instance.complete",
    internal=True,
    input=CompleteInstance,
    patterns=SHAPES,
    admit=completeness.admit_completion,
    # What it sets is what there should have been, so there is nothing to take back; and a repair
    # that does not work ends, and does not block a delete of the integration.
    steps=(
        compensatable(
            "evolution",
            do=completeness.complete,
            undo=verification.nothing_to_undo,
            retry=Retry(attempts=4, first=1.0),
        ),
    ),
)
