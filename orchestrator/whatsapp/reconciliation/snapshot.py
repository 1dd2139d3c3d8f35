"""A snapshot of all stores as plain data: the input of the plan and of the health check.

No token is kept here, only its fingerprint; whose instance it is has been proved by then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, TypeAlias
from uuid import UUID

from evosaga.orchestrator.commands.forgotten import ForgottenSaga
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

Memory: TypeAlias = Literal[
    "open", "connecting", "close", "absent", "half", "foreign", "unanswered"
]
"""What Evolution's memory said when it was asked about one instance with that instance's token.

``half``: one of the two views has it and the other not. ``foreign``: it opened to another token.
"""

RecordedState: TypeAlias = Literal["alive", "ended", "unknown"]
"""What the log says of an instance of ours: it should be there, it should not, never heard of."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One element of Evolution's list, which shows its database and lags behind its memory."""

    name: str
    status: str
    token_hash: str
    passive: bool = False
    """Of a channel that has no phone: open as soon as it is there."""
    phone: str | None = None
    """The number of the phone that was paired last, in digits."""
    linked: bool = False
    """Whether a phone was paired at all; one that hides behind a LID tells no number."""
    hidden: bool = False
    """The list does not show its token, so nothing can prove whose it is."""
    like_ours: bool = False
    """Its token has the shape of a birthmark: 64 hex digits, which Evolution itself never gives."""
    made_by: UUID | None = None
    """The saga whose birthmark it carries."""
    key_id: str | None = None
    """The secret key under which it got that birthmark."""
    reason: int | None = None
    """Why its connection ended last; kept after it came back."""
    closed_at: datetime | None = None
    server: str = DEFAULT_SERVER
    """The Evolution server that lists it."""
    settings: bool = True
    """Whether it has its settings; older servers don't say."""

    @property
    def paired(self) -> bool:
        """Whether a phone was ever linked to it."""
        return self.linked or self.phone is not None


@dataclass(frozen=True, slots=True)
class Origin:
    """What the log knows of the saga that made an instance."""

    recorded: RecordedState
    organization_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of ``healthcare.integrations``."""

    id: UUID
    organization_id: UUID
    instance_name: str
    status: str
    enabled: bool = True
    number: str | None = None
    clinic_id: str | None = None
    born: bool = False
    """Its id is that of a saga which made the instance it names, so the birthmark is known."""
    flag: str | None = None
    """What the last check made of it: ``missing``, ``half`` or ``foreign``, say."""
    updated_at: datetime | None = None
    fresh: bool = False
    """Made by a saga a moment ago; the health check has not been there yet."""
    server: str = DEFAULT_SERVER
    """The Evolution server that its instance should be on."""


@dataclass(frozen=True, slots=True)
class Key:
    """A routing key in Redis. What it says is None when it is unreadable."""

    instance_name: str
    organization_id: str | None
    clinic_id: str | None
    readable: bool = True
    expires: bool = True


@dataclass(frozen=True, slots=True)
class Keep:
    """What a person chose for one organization.

    ``choice`` is ``connected`` (the one that is connected, else the one the row names), ``none``
    (a clean slate) or the name of the instance to keep.
    """

    organization_id: UUID
    choice: str = "connected"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was found in one look, by instance name."""

    instances: Mapping[str, Instance] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)
    """Only what was asked: the list shows the rest well enough."""
    rows: Sequence[Row] = ()
    keys: Sequence[Key] = ()
    origins: Mapping[UUID, Origin] = field(default_factory=dict)
    older: Mapping[str, UUID] = field(default_factory=dict)
    """Names that older code gives, with the organization they speak of."""
    ours_by_name: frozenset[str] = frozenset()
    """Names that sagas of ours have given to an instance."""
    busy_names: frozenset[str] = frozenset()
    busy_organizations: frozenset[UUID] = frozenset()
    keep: Keep | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Names that a second Evolution server has as well, with that server."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Evolution servers of which nothing can be said now, and why."""
    beyond: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Rows of a server that are not in ``rows`` and should have an instance, and how many of those
    have none in the list: where a large server is looked at in part."""
    ours_beyond: int = 0
    """Instances of ours that agree with their rows and are left out."""

    def without(self, servers: Mapping[str, str]) -> "Snapshot":
        """The same without what is on these servers, and without its organizations.

        As if a saga were at work there: an organization that has one instance on a server that
        can't be seen may have its only good one there.
        """
        if not servers:
            return self
        hidden = [row for row in self.rows if row.server in servers]
        whose = {row.organization_id for row in hidden if row.enabled}
        return replace(
            self,
            instances={n: one for n, one in self.instances.items() if one.server not in servers},
            busy_names=self.busy_names | {row.instance_name for row in hidden},
            busy_organizations=self.busy_organizations | whose,
            unseen={**self.unseen, **servers},
        )

    def server_of(self, name: str, rows: Mapping[str, Row]) -> str:
        """The server to ask about that name; ``rows`` are those of ``named``."""
        known = self.instances.get(name) or rows.get(name)
        return known.server if known else DEFAULT_SERVER

    def asked(self, memory: Mapping[str, Memory]) -> "Snapshot":
        """The same, knowing what Evolution's memory said about some of them."""
        return replace(self, memory={**self.memory, **memory})

    def named(self) -> dict[str, Row]:
        """The row that counts for each name: enabled before disabled, then the first listed."""
        chosen: dict[str, Row] = {}
        for row in self.rows:
            before = chosen.get(row.instance_name)
            if before is None or (row.enabled and not before.enabled):
                chosen[row.instance_name] = row
        return chosen


def published_origins(forgotten: Sequence[ForgottenSaga]) -> dict[UUID, tuple[str, Origin]]:
    """The creates among them, with the instance's name and what the log would say of it.

    A delete is known by the name alone, and is the later one when it follows the create.
    """
    gone = {
        one.instance_name: one.at
        for one in forgotten
        if one.saga in ("delete-integration", "remove-orphan") and one.last == "saga.completed"
    }
    found: dict[UUID, tuple[str, Origin]] = {}
    for one in forgotten:
        if one.saga == "create-integration" and one.instance_name and not one.known:
            deleted_at = gone.get(one.instance_name)
            over = one.last == "saga.compensated" or (
                deleted_at is not None and deleted_at > one.at
            )
            recorded: RecordedState = "ended" if over else "alive"
            found[one.saga_id] = one.instance_name, Origin(recorded, one.organization_id)
    return found
