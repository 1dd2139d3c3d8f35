"""What is known when a command is admitted: rows, open sagas, instances that no row names. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from evosaga.sagas import conflicts
from evosaga.sagas.whatsapp.arbitration import CREATE_SAGA, DELETE_SAGA
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER


@dataclass(frozen=True, slots=True)
class Row:
    """A row of ``healthcare.integrations``. ``key_id``: that of its birthmark, if it has one."""

    id: UUID
    organization_id: UUID | None
    instance_name: str | None
    status: str
    enabled: bool = True
    clinic_id: str | None = None
    key_id: str | None = None
    server: str = DEFAULT_SERVER


@dataclass(frozen=True, slots=True)
class OpenSaga(conflicts.OpenSaga):
    """An open saga; ``facts`` are those it was started with."""

    clinic_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Left:
    """An instance that no row names, as upkeep saw it last: ``what`` is its drift."""

    instance_name: str
    organization_id: UUID | None
    what: str
    server: str = DEFAULT_SERVER


LEFT: Final = ("unrecorded", "row_gone", "rowless", "duplicate", "contested", "older_orphan")
"""Drifts of instances that can be deleted by their names though no row names them."""
LEFT_WITH_A_PHONE: Final = ("row_gone", "contested")
"""Those that are connected, and next to which no second one is made."""


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that concerns the organizations and names of a batch."""

    rows: Sequence[Row] = ()
    sagas: Sequence[OpenSaga] = ()
    left: Sequence[Left] = ()


class FoundIndex:
    """What was found, by name and by key, and what the commands weighed so far have added."""

    def __init__(self, found: Found, sagas: Iterable[OpenSaga]) -> None:
        self.left = {one.instance_name: one for one in found.left}
        self.phones = {o.organization_id: o for o in found.left if o.what in LEFT_WITH_A_PHONE}
        self.in_use: dict[UUID, Row] = {}
        self.named: dict[str, list[Row]] = {}
        self.queues: conflicts.Queues[OpenSaga] = conflicts.Queues(sagas)
        for row in found.rows:
            if row.enabled and row.organization_id is not None:
                self.in_use[row.organization_id] = row
            self.named.setdefault(row.instance_name or "", []).append(row)


def facts_of(sight: FoundIndex, name: str) -> dict[str, Any] | None:
    """What a delete of that instance relies on: from its row, else from the saga that knows."""
    if rows := sight.named.get(name):
        row = max(reversed(rows), key=lambda r: r.enabled)  # of several, the newest in use
        facts = {
            "instance_name": name,
            "integration_id": str(row.id),
            "created_by": str(row.id),
            "status": row.status,
            "clinic_id": row.clinic_id,
            "organization_id": str(row.organization_id) if row.organization_id else None,
            "server": row.server,
        }
        return facts | ({"key_id": row.key_id} if row.key_id else {})
    for saga in sight.queues.by_name.get(name, ()):
        if saga.saga == DELETE_SAGA:  # its row may be gone by now
            return {k: v for k, v in saga.facts.items() if k != "behind"}
        if saga.saga == CREATE_SAGA:
            return {
                "instance_name": name,
                "integration_id": str(saga.saga_id),
                "created_by": str(saga.saga_id),
                "status": "pending",
                "clinic_id": saga.clinic_id,
                "organization_id": str(saga.organization_id),
                "key_id": saga.facts.get("key_id"),
                "server": saga.facts.get("server", DEFAULT_SERVER),
            }
    return None


def facts_of_unnamed(left: Left | None, saga_id: UUID) -> dict[str, Any] | None:
    """The same for an instance that no row names any more, and that upkeep has seen."""
    if left is None:
        return None
    return {
        "instance_name": left.instance_name,
        "integration_id": str(saga_id),  # without an owner: there is no row to mark or to delete
        "created_by": str(saga_id),
        "status": "disconnected",
        "clinic_id": None,
        "organization_id": str(left.organization_id) if left.organization_id else None,
        "server": left.server,
        "forgotten": True,
    }
