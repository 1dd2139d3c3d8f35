"""Results of commands: what became of each, whether it came by stream, over HTTP or from a job."""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias
from uuid import UUID

from evosaga.events.commands import BadCommand, Command
from evosaga.orchestrator.engine.state import State


@dataclass(frozen=True, slots=True)
class Started:
    """A saga has started; its first events are committed."""

    kind: ClassVar[str] = "started"
    saga_id: UUID
    state: State


@dataclass(frozen=True, slots=True)
class Rejected:
    """Admission refused it, which is recorded as a saga of its own, ``rejected``."""

    kind: ClassVar[str] = "rejected"
    saga_id: UUID
    state: State


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The same command was accepted before; nothing was done."""

    kind: ClassVar[str] = "duplicate"
    saga_id: UUID


@dataclass(frozen=True, slots=True)
class Applied:
    """A replay or cancel was recorded in the history of ``saga_id``."""

    kind: ClassVar[str] = "applied"
    saga_id: UUID


@dataclass(frozen=True, slots=True)
class Conflict:
    """The id was used for another command; nothing was done."""

    kind: ClassVar[str] = "conflict"
    saga_id: UUID
    command_id: str

    @property
    def refusal(self) -> BadCommand:
        """What its sender is answered."""
        sentence = f"the id {self.command_id} was used for another command"
        return BadCommand("conflicting_duplicate", sentence)


@dataclass(frozen=True, slots=True)
class Refused:
    """It can't be obeyed, and why; nothing is recorded."""

    kind: ClassVar[str] = "refused"
    refusal: BadCommand


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Nothing is known to be committed; the same command may be given again."""

    kind: ClassVar[str] = "retry_later"


@dataclass(frozen=True, slots=True)
class Failed:
    """Our own code raised ``error``, which is no outage. Nothing is known to be committed.

    ``command``: None when it could not even be read.
    """

    kind: ClassVar[str] = "failed"
    error: Exception
    command: Command | None = None


Accepted: TypeAlias = Started | Rejected | Duplicate | Applied
"""What is committed, now or before."""
Result: TypeAlias = Accepted | Conflict | Refused | RetryLater | Failed
