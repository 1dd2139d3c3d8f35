"""What a step may say about what it did.

``Unknown`` is not a failure: the effect may have happened, so before anything else is tried or
undone the step looks at the world again (``StepContext.in_doubt`` tells it to).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A command to be published once the outcome that carries it is committed: exactly one saga."""

    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is there. ``result`` is recorded for later steps: no secrets, no personal data.

    ``follow_up`` starts another saga that looks after what this one can't wait for.
    """

    result: Mapping[str, Any] = field(default_factory=dict)
    follow_up: FollowUp | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Nothing happened, and trying again would not help."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may have happened, or it may work the next time. Costs an attempt."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Held:
    """Not now: a dependency is down or wants quiet. Costs no attempt.

    ``retry_after`` is in seconds; None leaves the wait to the engine. ``in_doubt`` says that
    something was sent all the same and may have had its effect.
    """

    code: str
    message: str
    retry_after: float | None = None
    in_doubt: bool = False


Outcome: TypeAlias = Done | Rejected | Unknown | Held


class NotOnThisWorker(Exception):
    """A step may raise it: this process can't go on with the saga, and another one may.

    The attempt is held under ``code``, and the saga is left to other workers for a minute.
    """

    code: ClassVar[str] = "not_on_this_worker"

    @property
    def reason(self) -> str:
        """The sentence that the history keeps: for people, without secrets."""
        return str(self)


class Sighting(StrEnum):
    """What a fresh look at a step's effect found."""

    THERE = "there"
    ABSENT = "absent"
    FOREIGN = "foreign"
    """Something is there, and it is somebody else's."""
    HALF = "half"
    UNKNOWN = "unknown"
    """The look itself failed, so nothing may be concluded from it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of a step's probe. ``evidence`` is a sentence for people, without secrets."""

    sighting: Sighting
    evidence: str
