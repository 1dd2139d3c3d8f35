"""The events of a saga, as frozen facts.

An event states what *was* true when it was committed and is never changed afterwards. Every field
here ends up in Postgres and most on a Redis stream, so the fields are an allow-list: there is no
field for an API key, an instance token, a QR code or a pairing code.

The two directions of a step have events of their own (``step.*`` forward, ``compensation.*``
backward); a *held* attempt is a failed one whose ``outcome`` is ``held``: the dependency was down,
nothing was sent, and no attempt is counted.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from evosaga.events.upcasting import upcast

JsonObject: TypeAlias = dict[str, Any]
FailureOutcome: TypeAlias = Literal["rejected", "unknown", "held"]
Direction: TypeAlias = Literal["forward", "compensation"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    PRIVATE: ClassVar[frozenset[str]] = frozenset()
    """Fields that stay in Postgres and are left out of the event stream."""


class FollowUp(BaseModel):
    """A command that the relay publishes together with the event that carries it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    type: str
    data: JsonObject


class SagaStarted(_Event):
    """A command was accepted; from this commit on the saga ends in exactly one outcome."""

    PRIVATE = frozenset({"input", "facts", "follow_up"})

    type: Literal["saga.started"] = "saga.started"
    saga: str
    version: int
    command: str
    command_id: str
    command_hash: str
    business_key: str
    organization_id: UUID | None = None
    instance_name: str | None = None
    input: JsonObject
    facts: JsonObject = Field(default_factory=dict)
    """What admission read and the saga relies on, such as the id of the row that it deletes."""
    deadline_seconds: float | None = None
    """Seconds until a saga that can still be undone is undone; no later setting changes it."""
    behind: UUID | None = None
    """The open saga of the same integration that this one waits for."""
    follow_up: FollowUp | None = None


class SagaRejected(_Event):
    """The command was refused before anything was touched. The whole history of such a saga."""

    PRIVATE = frozenset({"input"})

    type: Literal["saga.rejected"] = "saga.rejected"
    saga: str
    version: int
    command: str
    command_id: str
    command_hash: str
    business_key: str
    organization_id: UUID | None = None
    instance_name: str | None = None
    input: JsonObject
    code: str
    message: str
    existing_instance: str | None = None


class StepStarted(_Event):
    """Intent, committed before the effect. Appending it is also the claim on the saga."""

    type: Literal["step.started"] = "step.started"
    step: str
    attempt: int = Field(ge=1)
    worker: str
    lease_seconds: float
    """Without an outcome, any worker may take over after this long; sooner if the worker dies."""


class StepSucceeded(_Event):
    PRIVATE = frozenset({"follow_up"})

    type: Literal["step.succeeded"] = "step.succeeded"
    step: str
    attempt: int = Field(ge=1)
    result: JsonObject = Field(default_factory=dict)
    follow_up: FollowUp | None = None


class StepFailed(_Event):
    type: Literal["step.failed"] = "step.failed"
    step: str
    attempt: int = Field(ge=1)
    outcome: FailureOutcome
    code: str
    message: str
    in_doubt: bool = False
    """Whether this attempt may have had its effect; always so when the outcome is unknown."""
    retry_after_seconds: float | None = None
    """The dependency's wish (Retry-After, a quiet time); None: the saga's retry policy."""
    lost: bool | None = None
    """The attempt ended with its worker, so it is counted apart; None: it counts as an attempt."""


class CompensationBegan(_Event):
    """The rollback started. Recorded, so that no later setting can change its direction."""

    type: Literal["compensation.began"] = "compensation.began"
    because: Literal["step_failed", "cancelled", "deadline"]
    step: str | None = None
    code: str
    message: str
    steps: tuple[str, ...]
    """The steps to undo, in order."""


class CompensationStarted(_Event):
    type: Literal["compensation.started"] = "compensation.started"
    step: str
    attempt: int = Field(ge=1)
    worker: str
    lease_seconds: float


class CompensationSucceeded(_Event):
    PRIVATE = frozenset({"follow_up"})

    type: Literal["compensation.succeeded"] = "compensation.succeeded"
    step: str
    attempt: int = Field(ge=1)
    result: JsonObject = Field(default_factory=dict)
    follow_up: FollowUp | None = None


class CompensationFailed(_Event):
    type: Literal["compensation.failed"] = "compensation.failed"
    step: str
    attempt: int = Field(ge=1)
    outcome: FailureOutcome
    code: str
    message: str
    retry_after_seconds: float | None = None
    lost: bool | None = None
    """As in ``StepFailed``."""


class SagaCompleted(_Event):
    type: Literal["saga.completed"] = "saga.completed"


class SagaCompensated(_Event):
    """Everything that had been done is undone; nothing is left behind."""

    type: Literal["saga.compensated"] = "saga.compensated"
    code: str
    message: str


class SagaFailed(_Event):
    """Parked: a person must look. The saga keeps its business key until replay or cancel."""

    type: Literal["saga.failed"] = "saga.failed"
    step: str
    direction: Direction
    code: str
    message: str


class SagaResumed(_Event):
    """A parked saga was replayed: it continues at its step, with fresh attempts."""

    type: Literal["saga.resumed"] = "saga.resumed"
    by: str
    reason: str | None = None
    redo: tuple[str, ...] | None = None
    """Steps that were done and whose effect is verified as gone: they are done again."""


class SagaCancelRequested(_Event):
    type: Literal["saga.cancel_requested"] = "saga.cancel_requested"
    by: str
    reason: str | None = None


SagaEvent: TypeAlias = (
    SagaStarted
    | SagaRejected
    | StepStarted
    | StepSucceeded
    | StepFailed
    | CompensationBegan
    | CompensationStarted
    | CompensationSucceeded
    | CompensationFailed
    | SagaCompleted
    | SagaCompensated
    | SagaFailed
    | SagaResumed
    | SagaCancelRequested
)

KINDS: tuple[type[_Event], ...] = get_args(SagaEvent)
"""Every kind of event."""

_TYPE: Final = {"type"}
_ADAPTER: TypeAdapter[SagaEvent] = TypeAdapter(
    Annotated[SagaEvent, Field(discriminator="type")], config=ConfigDict(defer_build=True)
)


class Recorded(BaseModel):
    """An event with its place in the log.

    ``recorded_at`` is Postgres's clock, the only clock the product believes.
    ``correlation_id`` names the story (by default the first saga), ``causation_id`` what
    directly led to it (the command).
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    saga_id: UUID
    sequence: int
    recorded_at: datetime
    correlation_id: str
    causation_id: str | None
    event: SagaEvent


def event_from(type_: str, data: Mapping[str, Any]) -> SagaEvent:
    """Read an event from its stored form, whichever release wrote it.

    Raises ``pydantic.ValidationError`` when this release does not know the type or the data; the
    log is written by evosaga, so that is a bug or a newer release's event, never the caller's
    fault.
    """
    return _ADAPTER.validate_python({"type": type_, **upcast(type_, data)})


def data_json(event: SagaEvent) -> str:
    """The event's data as compact JSON text, without its type."""
    # What ``model_dump_json`` calls, in half its time: every event is written through here.
    raw = event.__pydantic_serializer__.to_json(event, exclude=_TYPE, exclude_none=True)
    return raw.decode()


def public_data(event: SagaEvent) -> JsonObject:
    """The event's data without its private (personal) fields, which stay in Postgres."""
    return event.model_dump(mode="json", exclude={"type", *event.PRIVATE}, exclude_none=True)
