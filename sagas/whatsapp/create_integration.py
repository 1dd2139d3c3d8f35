"""Make a WhatsApp integration: instance, row, routing key, word to the workers, QR code."""

from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from evosaga.sagas.definition import InCommit, Retry, Saga, compensatable, retryable
from evosaga.sagas.whatsapp import admission, row_dry_run, row_refusals
from evosaga.sagas.whatsapp.arbitration import CREATE_BESIDE
from evosaga.sagas.whatsapp.steps import (
    evolution_instance,
    instance_removal,
    integration_row,
    notify_workers,
    pairing_code,
    routing_key,
)
from evosaga.sagas.whatsapp.types import (
    SHAPES,
    ClinicName,
    InstanceName,
    PhoneNumber,
    ServerName,
    WebhookUrl,
)


class CreateIntegration(BaseModel):
    """The ``data`` of an ``integration.create`` command."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    asks: ClassVar[Literal["create"]] = "create"

    organization_id: UUID
    clinic_id: UUID
    name: ClinicName
    instance_name: InstanceName | None = None
    channel: Literal["WHATSAPP-BAILEYS", "EVOLUTION"] = "WHATSAPP-BAILEYS"
    number: PhoneNumber | None = None
    webhook_url: Annotated[WebhookUrl, StringConstraints(max_length=500)] | None = None
    # Recorded only where it was given: to a release that knows one server it is no known word.
    server: ServerName | None = Field(None, exclude_if=lambda server: server is None)


CREATE_INTEGRATION: Final = Saga(
    name="create-integration",
    version=1,
    command="integration.create",
    input=CreateIntegration,
    patterns=SHAPES,
    admit=admission.TOGETHER,
    on_conflict=CREATE_BESIDE,
    rehearse=row_dry_run.tried,
    steps=(
        compensatable(
            "evolution",
            do=evolution_instance.create_instance,
            undo=instance_removal.remove_instance,
            retry=Retry(attempts=4, first=1.0),
            probe=evolution_instance.probe_instance,
        ),
        compensatable(
            "postgres",
            do=InCommit(integration_row.save_integrations, row_refusals.understood),
            undo=InCommit(integration_row.unsave_integrations, row_refusals.understood),
            probe=integration_row.probe_saved,
        ),
        compensatable(
            "cache",
            do=routing_key.fill,
            undo=routing_key.invalidate,
            probe=routing_key.probe_filled,
        ),
        # An announcement or a picture of a code leaves nothing behind to look for.
        retryable("notify", do=notify_workers.announce_added),
        retryable("pair", do=pairing_code.ask_for_qr, skip_when=pairing_code.needs_no_qr),
    ),
)
