"""Let an integration's row say what there is: connected, disconnected, or nothing there at all."""

from typing import Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from sagas.definition import InCommit, Saga, compensatable, pivot, retryable
from sagas.steps import rehearsing, repair_admissions, repair_effects, repair_looks
from sagas.vocabulary import ExistingName, PhoneNumber


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
    admit=repair_admissions.admit_correction,
    steps=(
        compensatable("look", do=repair_looks.see_again, undo=repair_looks.nothing_to_undo),
        pivot("postgres", do=InCommit(repair_effects.correct_rows, rehearsing.understood)),
        retryable("cache", do=repair_effects.drop_key),
    ),
)
