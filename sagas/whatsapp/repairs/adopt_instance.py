"""Let an organization's row name an instance that is there, instead of one that is not.

Older code made several instances for one organization; the one that is connected is kept. An
instance of ours whose row was deleted by hand gets its row again, as the log remembers it.
"""

from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from evosaga.sagas.definition import InCommit, Saga, compensatable, pivot, retryable
from evosaga.sagas.whatsapp import row_refusals
from evosaga.sagas.whatsapp.repairs import admission, effects, verification
from evosaga.sagas.whatsapp.types import (
    DEFAULT_SERVER,
    SHAPES,
    ExistingName,
    PhoneNumber,
    ServerName,
)


def _absent(value: object) -> bool:
    return value is None


class AdoptInstance(BaseModel):
    """The ``data`` of an ``instance.adopt`` command: which row, which instance, as it was seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    organization_id: UUID
    integration_id: UUID
    instance_name: ExistingName
    token_hash: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{16}\z")]
    seen: Literal["open", "closed"]
    whatsapp_number: PhoneNumber | None = None
    channel: Literal["WHATSAPP-BAILEYS", "EVOLUTION"] | None = Field(None, exclude_if=_absent)
    """Given where neither a row nor, perhaps, the log knows the instance: a row is made for it."""
    key_id: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{8}\z")] | None = Field(
        None, exclude_if=_absent
    )
    """The secret key of its birthmark, by which its webhook is known as well."""
    server: ServerName = Field(DEFAULT_SERVER, exclude_if=lambda server: server == DEFAULT_SERVER)


ADOPT_INSTANCE: Final = Saga(
    name="adopt-instance",
    version=1,
    command="instance.adopt",
    internal=True,
    input=AdoptInstance,
    patterns=SHAPES,
    admit=admission.admit_adoption,
    steps=(
        compensatable("look", do=verification.see_to_adopt, undo=verification.nothing_to_undo),
        pivot("postgres", do=InCommit(effects.adopt_rows, row_refusals.understood)),
        retryable("cache", do=effects.drop_key),
        retryable("notify", do=effects.announce_adopted),
    ),
)
