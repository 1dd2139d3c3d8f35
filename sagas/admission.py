"""What may become of a command: it is admitted, refused, or admitted to wait for its turn.

A definition says with ``on_conflict`` what becomes of a command whose business key an open saga
has; ``evosaga.sagas.conflicts`` carries that out.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeAlias
from uuid import UUID

from typing_extensions import TypeVar

from evosaga.sagas.outcome import FollowUp

InputT = TypeVar("InputT", contravariant=True, default=Any)
ServicesT = TypeVar("ServicesT", contravariant=True, default=Any)
"""What a definition's steps are called with. Contravariant: a step that needs less serves more."""

Answer: TypeAlias = Literal["refuse", "wait", "supersede"]
"""What becomes of a command whose business key is taken.

``refuse``: it is rejected as ``in_progress``. ``wait``: its saga starts *behind* the one that has
the key, and does nothing until that is over. ``supersede``: the same, and the one ahead is asked to
stop, if it still can. Behind one that is parked nothing waits: it is refused.
"""
OnConflict: TypeAlias = Answer | Mapping[str, Answer]
"""One answer, or one for each saga that may stand in the way, by its name; ``OTHERS`` for the rest.
What a mapping does not name is refused."""
OTHERS: Final = "*"


@dataclass(frozen=True, slots=True)
class Admission:
    """A command may become a saga.

    ``business_key`` is what only one open saga may hold; ``facts`` are recorded with the start
    and handed to every step. ``behind``: the open saga that this one waits for, which keeps the
    instance's name meanwhile. ``deadline_seconds``: when to turn round by itself. ``follow_up``:
    a command that is published with the beginning.
    """

    business_key: str
    organization_id: UUID | None = None
    instance_name: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    behind: UUID | None = None
    deadline_seconds: float | None = None
    follow_up: FollowUp | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command may not become a saga, and why. Nothing has been touched."""

    code: str
    message: str
    business_key: str = ""
    organization_id: UUID | None = None
    instance_name: str | None = None
    existing_instance: str | None = None


Verdict: TypeAlias = Admission | Refusal
Admit: TypeAlias = Callable[
    [Any, ServicesT, Sequence[tuple[UUID, InputT]]], Awaitable[Sequence[Verdict]]
]
"""``async (connection, services, [(saga id, input)]) -> [Admission | Refusal]``, in order.

Called inside the accepting transaction, before the business key is claimed and once more after,
so that what another worker committed in between is seen. It reads and never writes.
"""


@dataclass(frozen=True, slots=True)
class Candidate(Generic[InputT]):
    """A command to be admitted, and what its definition declares."""

    saga_id: UUID
    input: InputT
    on_conflict: OnConflict


@dataclass(frozen=True, slots=True)
class AdmitTogether(Generic[ServicesT]):
    """One admission of several definitions, whose commands are weighed together in their order.

    It is told what each of them declares, and asks ``evosaga.sagas.conflicts.weigh`` itself.
    """

    run: Callable[[Any, ServicesT, Sequence[Candidate[Any]]], Awaitable[Sequence[Verdict]]]


Rehearse: TypeAlias = Callable[
    [Any, ServicesT, Sequence[tuple[UUID, InputT]], Sequence[Verdict]],
    Awaitable[Sequence[Verdict]],
]
"""``async (connection, services, [(saga id, input)], verdicts) -> verdicts``, in order.

Called inside the accepting transaction, once, for what was admitted: whatever it tries for there it
takes back, and what would not work is refused before anything is done outside.
"""


class AdmissionHeld(Exception):
    """An admission or a rehearsal may raise it together with an error that the engine waits for:
    its text, without secrets, says what an operator must mend, and is logged."""
