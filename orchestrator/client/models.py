"""What evosaga answers, as plain frozen data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

Status = Literal["running", "compensating", "completed", "compensated", "failed", "rejected"]


@dataclass(frozen=True, slots=True)
class QrCode:
    """``base64`` is a PNG as a data URL. Good for less than a minute."""

    base64: str | None = None
    code: str | None = None
    pairing_code: str | None = None


@dataclass(frozen=True, slots=True)
class Created:
    saga_id: UUID
    integration_id: UUID
    instance_name: str
    status: str
    qr_code: QrCode | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """Each is true once it was seen to be gone there."""

    success: bool
    evolution_deleted: bool
    database_deleted: bool
    cache_invalidated: bool
    workers_notified: bool
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """A command that is committed: its saga, and how that stands."""

    saga_id: UUID
    status: Status
    instance_name: str | None


@dataclass(frozen=True, slots=True)
class Saga:
    saga_id: UUID
    saga: str
    version: int
    status: Status
    over: bool
    organization_id: UUID | None
    instance_name: str | None
    command_id: str
    step: str | None
    attempt: int | None
    code: str | None
    message: str | None
    created_at: datetime
    updated_at: datetime
    next_at: datetime | None
    sequence: int
    business_key: str = ""
    direction: Literal["forward", "compensation"] | None = None
    existing_instance: str | None = None
    behind: UUID | None = None
    owner: str | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent of a saga's history."""

    id: str
    type: str
    sequence: int
    time: datetime
    data: dict[str, Any] = field(default_factory=dict)
    correlation_id: str | None = None
    causation_id: str | None = None


@dataclass(frozen=True, slots=True)
class SagaPage:
    """Newest first. ``cursor`` gives the next page; None: that was all."""

    sagas: tuple[Saga, ...]
    cursor: str | None


_T = TypeVar("_T")
_CONVERTED: Final[Mapping[str, Callable[[str], Any]]] = {
    "saga_id": UUID,
    "integration_id": UUID,
    "organization_id": UUID,
    "behind": UUID,
    "created_at": datetime.fromisoformat,
    "updated_at": datetime.fromisoformat,
    "next_at": datetime.fromisoformat,
}


def parse(kind: type[_T], told: Mapping[str, Any]) -> _T:
    """The server's answer as that type; fields of a newer server are ignored."""
    names = [each.name for each in fields(kind) if each.name in told]  # type: ignore[arg-type]
    return kind(**{name: _converted(name, told[name]) for name in names})


def _converted(name: str, value: Any) -> Any:
    return _CONVERTED[name](value) if name in _CONVERTED and value is not None else value


def event_from(told: Mapping[str, Any]) -> Event:
    """A CloudEvent as the server tells it."""
    sequence = int(str(told["id"]).rpartition(":")[2])
    at = datetime.fromisoformat(told["time"])
    return Event(
        told["id"],
        told["type"],
        sequence,
        at,
        dict(told["data"]),
        told.get("correlationid"),
        told.get("causationid"),
    )
