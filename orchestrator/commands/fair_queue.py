"""What was read from the stream, handed on in turns: one command of each organization at a time.

An organization that publishes thousands of commands at once delays its own, and nobody else's.
Within an organization the order stays. Deficit round robin in which every command costs the same,
so no deficit is left over.
"""

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from evosaga.orchestrator.commands.subscriber import Message

AHEAD: Final = 5000
"""Commands that a worker reads ahead while it accepts: the bound of what is fair."""
_FLOOD: Final = 4
"""Commands of an organization that wait, on average, where few organizations have most of them."""
_ORGANIZATION: Final = re.compile(
    rb'"organization_id"\s*:\s*"([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"'
)


def organization_of(message: Message) -> UUID | None:
    """Whose command it is, as far as that can be seen without parsing it; a wrong guess costs
    nothing but a turn."""
    for value in message.fields.values():
        if (fit := _ORGANIZATION.search(value)) is not None:
            return UUID(fit[1].decode())
    return None


class FairQueue:
    """Commands in the order of their turns. One that is there already is not added again."""

    def __init__(self) -> None:
        self._flows: OrderedDict[UUID | None, deque[Message]] = OrderedDict()
        self._ids: set[bytes] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[bytes]:
        """The commands that wait here."""
        return sorted(self._ids)

    @property
    def flooded(self) -> bool:
        """Whether few organizations have most of what is here, so that reading on finds others."""
        nobodys = len(self._flows.get(None, ()))
        organizations = len(self._flows) - (None in self._flows)
        return len(self) - nobodys > max(_FLOOD * organizations, nobodys)

    def add(self, messages: Iterable[Message]) -> None:
        """Behind what the same organization has here already."""
        for message in messages:
            if message.id not in self._ids:
                self._ids.add(message.id)
                self._flows.setdefault(organization_of(message), deque()).append(message)
        self._changed.set()

    def take(self, most: int) -> list[tuple[UUID | None, Message]]:
        """The next ones, at most so many, each with its organization."""
        taken: list[tuple[UUID | None, Message]] = []
        while self._flows and len(taken) < most:
            flow, waiting = self._flows.popitem(last=False)
            message = waiting.popleft()
            if waiting:
                self._flows[flow] = waiting  # at the end: all others come first
            self._ids.discard(message.id)
            taken.append((flow, message))
        self._changed.set()
        return taken

    async def change(self) -> None:
        """Wait until something was added or taken."""
        self._changed.clear()
        await self._changed.wait()
