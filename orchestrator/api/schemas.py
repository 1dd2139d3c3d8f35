"""Request and response models of the routes."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from evosaga.events import cloudevents
from evosaga.events.model import Recorded
from evosaga.orchestrator.engine.state import Status
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView

SAGA_ID: Final = "0197a3c4-5d2e-7c10-8a51-5f0a6f3b2c11"
ORGANIZATION_ID: Final = "4e8ddba1-ad52-4613-9a03-ec64636b3f6c"
CLINIC_ID: Final = "b7a1f0de-3c1e-4d37-9a55-0d2f5a3c9e10"
INSTANCE: Final = f"wa-{SAGA_ID}"
_AT: Final = "2026-01-07T09:30:00.123456Z"


class Shape(BaseModel):
    """An answer's JSON."""

    model_config = ConfigDict(frozen=True)


class QrCode(Shape):
    """``base64`` is a PNG as a data URL, ``code`` what it says, for who draws it anew."""

    base64: str | None = None
    code: str | None = None
    pairing_code: str | None = None


class Created(Shape):
    """An integration is there, in all three places; its phone is still to be paired."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "success": True,
                "saga_id": SAGA_ID,
                "integration_id": SAGA_ID,
                "instance_name": INSTANCE,
                "status": "pending",
                "qr_code": {
                    "base64": "data:image/png;base64,iVBORw0KGgo…",
                    "code": "2@y8eK…",
                    "pairing_code": None,
                },
            }
        }
    )

    success: Literal[True] = True
    saga_id: UUID
    integration_id: UUID
    instance_name: str
    status: Literal["pending"] = "pending"
    qr_code: QrCode | None


class Duplicate(Shape):
    """The original system's answer to a second integration."""

    success: Literal[False] = False
    error: str = "WhatsApp integration already exists for this organization"
    existing_instance: str | None = Field(examples=[INSTANCE])
    message: str = "Please delete the existing integration before creating a new one"


class Deleted(Shape):
    """The original system's answer to a delete: each is true once it is seen to be gone there."""

    success: bool
    evolution_deleted: bool
    database_deleted: bool
    cache_invalidated: bool
    workers_notified: bool
    errors: list[str]


class Submitted(Shape):
    """The command is committed and will be obeyed, whatever happens to this process."""

    saga_id: UUID = Field(examples=[SAGA_ID])
    status: Status
    instance_name: str | None = Field(examples=[INSTANCE])
    location: str = Field(examples=[f"/sagas/{SAGA_ID}"])


class SagaShape(Shape):
    """``behind`` is the saga it waits for."""

    saga_id: UUID = Field(examples=[SAGA_ID])
    saga: str = Field(examples=["create-integration"])
    version: int = Field(examples=[1])
    status: Status
    over: bool = Field(description="nothing more happens by itself")
    business_key: str
    organization_id: UUID | None = Field(examples=[ORGANIZATION_ID])
    instance_name: str | None = Field(examples=[INSTANCE])
    command_id: str
    step: str | None = Field(examples=["evolution"])
    direction: Literal["forward", "compensation"] | None
    attempt: int | None
    code: str | None
    message: str | None
    existing_instance: str | None
    behind: UUID | None
    created_at: datetime = Field(examples=[_AT])
    updated_at: datetime = Field(examples=[_AT])
    next_at: datetime | None = Field(
        description="when it is tried again; while an attempt is out, by when that must have "
        "answered"
    )
    owner: str | None = Field(description="the worker that has it in hand")
    sequence: int = Field(description="how many events it has", examples=[12])
    held: bool = Field(
        False, description="it waits for a dependency that is away, and uses up no attempt"
    )


class SagaPage(Shape):
    """A page, newest first. ``cursor`` leads to the next one; null: this was the last."""

    sagas: list[SagaShape]
    cursor: str | None


class EventPage(Shape):
    """CloudEvents, exactly as on the stream ``evosaga:events``. ``cursor`` as in other pages."""

    events: list[dict[str, Any]] = Field(
        examples=[
            [
                {
                    "specversion": "1.0",
                    "id": f"{SAGA_ID}:2",
                    "source": "/evosaga",
                    "type": "step.succeeded",
                    "subject": SAGA_ID,
                    "time": _AT,
                    "datacontenttype": "application/json",
                    "correlationid": SAGA_ID,
                    "causationid": SAGA_ID,
                    "data": {"saga": "create-integration", "version": 1, "step": "evolution"},
                }
            ]
        ]
    )
    cursor: str | None


class LastSaga(Shape):
    saga_id: UUID
    saga: str
    status: Status


class IntegrationShape(Shape):
    """A row of ``healthcare.integrations`` without its secret."""

    integration_id: UUID = Field(examples=[SAGA_ID])
    organization_id: UUID | None = Field(
        description="null, as the times, only in a row of older code", examples=[ORGANIZATION_ID]
    )
    clinic_id: str | None = Field(examples=[CLINIC_ID])
    instance_name: str | None = Field(examples=[INSTANCE])
    name: str | None = Field(examples=["Clínica Sol"])
    channel: str | None = Field(examples=["WHATSAPP-BAILEYS"])
    status: str = Field(description="pending, connected, disconnected or deleting")
    enabled: bool
    whatsapp_number: str | None = Field(examples=["5511987654321"])
    webhook_url: str | None
    server: str = Field(description="the Evolution server it is on", examples=["default"])
    created_at: datetime | None = Field(examples=[_AT])
    updated_at: datetime | None = Field(examples=[_AT])
    last_saga: LastSaga | None
    connection: str | None = Field(
        None,
        description="how the phone was connected when that was last checked; null before",
        examples=["connected"],
    )
    connection_since: datetime | None = Field(None, examples=[_AT])


class IntegrationPage(Shape):
    """A page. ``cursor`` leads to the next one, ``previous`` back; null: there is none.

    ``count`` is of all pages; ``more`` says that there are more than were counted.
    """

    integrations: list[IntegrationShape]
    cursor: str | None
    previous: str | None = None
    count: int = Field(0, examples=[412])
    more: bool = False


class SearchAnswer(Shape):
    """What was found: integrations, the newest first, and sagas, the parked ones first.

    ``count`` is of the integrations; ``organization_id`` is one whose id begins so.
    """

    integrations: list[IntegrationShape]
    count: int
    more: bool = Field(description="there are more integrations than were counted")
    sagas: list[SagaShape]
    organization_id: UUID | None


class QrAnswer(Shape):
    instance_name: str = Field(examples=[INSTANCE])
    message: str = Field(examples=["scan it with WhatsApp on the phone (Linked devices)"])
    qr_code: QrCode


class PlanLine(Shape):
    step: str = Field(examples=["evolution"])
    action: str = Field(description="reuse, adopt, redo, undo first or blocked")
    evidence: str = Field(description="what a look found, in a sentence")


class PlanShape(Shape):
    """What a replay would do to the world if it came now. Nothing is changed by asking."""

    saga_id: UUID = Field(examples=[SAGA_ID])
    allowed: bool
    headline: str
    code: str | None = Field(description="why it would be refused")
    anew: bool = Field(description="it would start again, as a saga of its own")
    steps: list[PlanLine]


class WhyShape(Shape):
    """Why the saga is where it is, for people."""

    saga_id: UUID = Field(examples=[SAGA_ID])
    headline: str
    details: list[str]
    next_at: datetime | None = Field(
        description="when it goes on by itself; when `in_flight`, the time limit of that attempt"
    )
    cure: str | None
    in_flight: bool = Field(description="an attempt is out right now")
    runbook: str | None = Field(description="where the paragraph of its reason is")


class Reason(BaseModel):
    """The optional body of replay and cancel."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = Field(None, max_length=500, examples=["Evolution is back"])


def saga_shape(view: SagaView) -> SagaShape:
    """A saga as the API shows it."""
    return SagaShape.model_validate(asdict(view) | {"over": view.over})


def integration_shape(view: IntegrationView) -> IntegrationShape:
    """An integration as the API shows it."""
    facts = asdict(view)
    last = {name: facts.pop(f"last_{column}") for name, column in _LAST.items()}
    facts["integration_id"] = facts.pop("id")
    return IntegrationShape.model_validate(facts | {"last_saga": last if last["saga"] else None})


_LAST: Final = {"saga_id": "saga_id", "saga": "saga", "status": "status"}


def cloud_event(view: SagaView, recorded: Recorded) -> bytes:
    """An event as on the stream ``evosaga:events``."""
    row: Any = {
        "saga": view.saga,
        "version": view.version,
        "organization_id": view.organization_id,
    }
    return cloudevents.cloud_event(row, recorded)
