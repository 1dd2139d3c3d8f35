"""A command together with the saga that it asks for."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as QuickUUID

from evosaga.events.commands import Command
from evosaga.sagas.definition import Saga


@dataclass(frozen=True, slots=True)
class Request:
    """A command together with the saga it asks for and its checked input.

    ``doubtful``: it may not be refused yet, since what goes before it may still be on its way.
    """

    command: Command
    saga: Saga
    input: Any
    doubtful: bool = False
    saga_id: UUID = field(init=False)
    hash: str = field(init=False)
    """Both are those of the command, worked out once."""

    def __post_init__(self) -> None:
        # asyncpg's own kind is told from others and written out six times as fast.
        object.__setattr__(self, "saga_id", QuickUUID(self.command.saga_id.hex))
        object.__setattr__(self, "hash", self.command.hash)
