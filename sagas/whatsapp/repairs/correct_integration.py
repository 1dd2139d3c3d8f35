"""Let an integration's row say what there is: connected, disconnected, or nothing there at all."""

from typing import Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from evosaga.sagas.definition import InCommit, Saga, compensatable, pivot, retryable
from evosaga.sagas.whatsapp import row_refusals
from evosaga.sagas.whatsapp.repairs import admission, effects, verification
from evosaga.sagas.whatsapp.types import SHAPES, ExistingName, PhoneNumber


class CorrectIntegration(BaseModel):
    """The ``data`` of an ``integration.correct`` command: what was seen, and will be seen again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    integration_id: UUID
    instance_name: ExistingName
    seen: Literal["open", "closed", "half", "missing", "foreign"]
    whatsapp_number: PhoneNumber | None = None


CORRECT_INTEGRATION: Final = Saga(
    name="correct-integration",
    version=1,
    command="integration.correct",
    internal=True,
    input=CorrectIntegration,
    patterns=SHAPES,
    admit=admission.admit_correction,
    steps=(
        compensatable("look", do=verification.see_again, undo=verification.nothing_to_undo),
        pivot("postgres", do=InCommit(effects.correct_rows, row_refusals.understood)),
        retryable("cache", do=effects.drop_key),
    ),
)
