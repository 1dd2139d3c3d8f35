"""Make a WhatsApp integration: instance, row, routing key, word to the workers, QR code."""

from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sagas.definition import InCommit, Retry, Saga, compensatable, retryable
from sagas.steps import admission, cache, evolution, notify, pairing, postgres, rehearsing
from sagas.vocabulary import ClinicName, InstanceName, PhoneNumber, ServerName, WebhookUrl


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
    admit=admission.admit,
    rehearse=rehearsing.tried,
    steps=(
        compensatable(
            "evolution",
            do=evolution.create_instance,
            undo=evolution.remove_instance,
            retry=Retry(attempts=4, first=1.0),
            probe=evolution.probe_instance,
        ),
        compensatable(
            "postgres",
            do=InCommit(postgres.save_integrations, rehearsing.understood),
            undo=InCommit(postgres.unsave_integrations, rehearsing.understood),
            probe=postgres.probe_saved,
        ),
        compensatable("cache", do=cache.fill, undo=cache.invalidate, probe=cache.probe_filled),
        # An announcement or a picture of a code leaves nothing behind to look for.
        retryable("notify", do=notify.announce_added),
        retryable("pair", do=pairing.ask_for_qr, spare=pairing.needs_no_qr),
    ),
)
