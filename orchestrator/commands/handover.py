"""Commands that this worker does not know are left to one that does.

While releases are mixed, or several registries read one stream, Redis may hand a command to a
worker that has no saga for it, or an older one. Such a command is neither obeyed nor buried: it is
laid, unacknowledged, before a consumer that is no worker. Every worker looks there once a second
and takes what it knows. What a living worker says it knows is left to it; what is not taken
after ``patience`` seconds becomes the dead letter that it would have been at once.

A worker that starts anew gives what lies there that time once more: nothing is lost for it.
"""

import functools
import hashlib
import json
import time
from collections.abc import Sequence, Set
from typing import Final

import structlog
from pydantic import BaseModel
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.commands import STEERING, BadCommand, Command, read_command
from evosaga.events.database import Pool
from evosaga.orchestrator.commands.accept import checked, parse_request
from evosaga.orchestrator.commands.control import UNKNOWN_VERSION, ControlCommand
from evosaga.orchestrator.commands.subscriber import Message
from evosaga.sagas.registry import SagaRegistry

_logger = structlog.get_logger("evosaga.handover")
NOBODY: Final = "left-to-whoever-knows"
"""The consumer that owns what was left."""
_SAGA_PATIENCE: Final = 600.0
"""Seconds that a wish waits at least which is about a saga whose definition no worker here has."""
_SHAPE_PATIENCE: Final = 5.0
"""Seconds that a command waits at least whose data another living worker may understand."""
_ASK_AGAIN: Final = 5.0
"""Seconds after which is asked again whether a living worker knows what none has taken."""
_PERHAPS: Final = frozenset({"unknown_type", "invalid_data", UNKNOWN_VERSION})
"""The codes of refusals that another release might not give."""
_STALE: Final = 2000
"""Milliseconds after which what lies there is marked as looked after, or it is reclaimed."""


def announced(registry: SagaRegistry) -> list[str]:
    """What a worker with this registry says it knows, each as ``name/number``.

    Definitions with their version, and commands with a number that another shape of their data
    would not have.
    """
    definitions = [f"{saga}/{version}" for saga, version in registry.versions]
    return [*definitions, *(f"{name}/{mark}" for name, mark in _commands(registry).items())]


def _commands(registry: SagaRegistry) -> dict[str, str]:
    marks = {f"command {type_}": "0" for type_ in STEERING}
    for type_, saga in registry.by_command.items():
        shape: type[BaseModel] = saga.input
        marks[f"command {type_}"] = _number(saga.version, shape)
    return marks


@functools.cache  # a schema takes 2 ms, and each worker of a process asks for all of them
def _number(version: int, shape: type[BaseModel]) -> str:
    text = json.dumps([version, shape.model_json_schema()], sort_keys=True)
    return str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


class Handover:
    """What one worker leaves to others, and takes of what they have left. Seconds."""

    def __init__(
        self, redis: Redis, pool: Pool, registry: SagaRegistry, worker: str, patience: float
    ) -> None:
        self._redis = redis
        self._pool = pool
        self._registry = registry
        self._own = _commands(registry)
        self._worker = worker
        self._patience = patience
        self._until: dict[bytes, float] = {}
        self._overdue: set[bytes] = set()

    async def leave(self, bad: Sequence[tuple[Message, BadCommand]]) -> set[bytes]:
        """The ids of those whose refusal is not this worker's to give; they are left to others."""
        asked = [m for m, refusal in bad if refusal.code in _PERHAPS and m.id not in self._overdue]
        self._overdue -= {message.id for message, _ in bad}
        left: list[bytes] = []
        others = await self._others() if asked else frozenset()
        for message in asked:
            command = read_command(message.body())
            if await self._foreign(command, others):
                left.append(message.id)
                self._wait(message.id, command)
                _logger.info("left to others", message=message.id.decode(), type=command.type)
        await streams.hand_over(self._redis, self._worker, NOBODY, left)
        return set(left)

    async def look(self) -> list[Message]:
        """What this worker takes: what it knows, and what has not been taken for too long."""
        lying = await streams.pending(self._redis, consumer=NOBODY)
        self._until = {id_: until for id_, until in self._until.items() if id_ in lying}
        if not lying:
            return []
        stale = [id_ for id_, silent in lying.items() if silent > _STALE]
        await streams.hand_over(self._redis, NOBODY, NOBODY, stale)
        now = time.monotonic()
        asked = [id_ for id_ in lying if self._until.get(id_, 0.0) <= now]
        fields = await streams.fields_of(self._redis, asked)
        # What was deleted from the stream can't be obeyed.
        await streams.acknowledge(self._redis, [id_ for id_ in asked if id_ not in fields])
        others = await self._others() if fields else frozenset()
        mine: list[Message] = []
        for message in (Message(id_, found) for id_, found in fields.items()):
            command = _read(message)
            if message.id not in self._until:
                if await self._foreign(command, others):
                    self._wait(message.id, command)
                else:
                    mine.append(message)
            elif await self._known(command, others):
                self._until[message.id] = now + _ASK_AGAIN
            else:
                self._overdue.add(message.id)
                mine.append(message)
        ids = [message.id for message in mine]
        taken = await streams.hand_over(self._redis, NOBODY, self._worker, ids)
        self._overdue -= set(ids) - taken
        return [message for message in mine if message.id in taken]

    def _wait(self, id_: bytes, command: Command) -> None:
        patience = max(self._patience, _SAGA_PATIENCE if command.type in STEERING else 0.0)
        if command.type in self._registry.by_command:
            patience = max(patience, _SHAPE_PATIENCE)
        self._until.setdefault(id_, time.monotonic() + patience)

    async def _foreign(self, command: Command, others: Set[str]) -> bool:
        """Whether a worker of another release may understand what this one does not."""
        if command.type in STEERING:
            definition = await self._steered(command)
            return definition is not None and definition not in self._registry.versions
        name = f"command {command.type}"
        if command.type not in self._registry.by_command:
            return True
        try:
            parse_request(self._registry, command)
        except BadCommand:
            return any(_named(one) == name for one in others - {f"{name}/{self._own[name]}"})
        return False

    async def _known(self, command: Command, others: Set[str]) -> bool:
        """Whether a living worker knows what this one does not, however long it may take."""
        if command.type in STEERING:
            definition = await self._steered(command)
            return definition is not None and "{}/{}".format(*definition) in others
        if command.type in self._registry.by_command:
            return False  # only the shape of its data is another one
        return any(_named(one) == f"command {command.type}" for one in others)

    async def _others(self) -> frozenset[str]:
        """What the other living workers say they know, and those that were just interrupted."""
        return frozenset(row["known"] for row in await self._pool.fetch(_OTHERS, self._worker))

    async def _steered(self, command: Command) -> tuple[str, int] | None:
        """The definition of the saga that a wish is about, None when there is no such saga."""
        try:
            wish: ControlCommand = checked(ControlCommand, command)
        except BadCommand:
            return None
        row = await self._pool.fetchrow(_STEERED, wish.saga_id)
        return (row["saga"], row["version"]) if row else None


def _read(message: Message) -> Command:
    """The command; what this release can't even read is of a type that it does not know."""
    try:
        return read_command(message.body())
    except BadCommand:
        return Command("", "", {})


def _named(known: str) -> str:
    return known.rpartition("/")[0]


_OTHERS: Final = """
SELECT DISTINCT unnest(knows) AS known FROM evosaga.workers
WHERE lease_until > now() - interval '1 minute' AND worker_id <> $1
"""
_STEERED: Final = "SELECT saga, version FROM evosaga.sagas WHERE saga_id = $1"
