"""Commands of one organization, name or saga keep their order over all workers.

A worker may be about to refuse a command only because another one has not yet committed what was
published before it: a delete right behind its create, say. Then the command waits for its turn,
until everything before it that is about the same is acknowledged, which it is after its commit.
What was handed out and is not acknowledged, Redis knows.

Only what would be refused waits, so the order costs nothing where all is well. Of two commands that
may both begin, whichever a worker commits first comes first.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.commands import BadCommand, Command, read_command
from evosaga.events.connection_errors import reason
from evosaga.orchestrator.commands.claims import Request, TooSoon
from evosaga.orchestrator.commands.subscriber import Message
from evosaga.sagas.definition import Refusal

_logger = structlog.get_logger("evosaga.ordering")
LONGEST: Final = 30.0
"""Seconds that a command waits for its turn: a worker that died is followed within ten."""
_SOON, _SELDOM = 0.02, 0.5
"""Seconds between two looks whether a turn has come: the shortest and the longest."""


class Interrupted(Exception):
    """The worker stops, or Redis is away, before the command's turn has come; it comes again."""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """A command in the queue, and whatever it is about."""

    id: bytes
    about: frozenset[str]


Asked: TypeAlias = tuple[Message, Request]


class CommandOrder:
    """The commands whose turn one worker waits for."""

    def __init__(self, redis: Redis, worker: str) -> None:
        self._redis = redis
        self._worker = worker
        self._waiting: set[bytes] = set()
        self._ahead: dict[bytes, frozenset[str]] = {}
        self._steered: set[bytes] = set()
        self._stopping = False

    def waits(self, message: Message) -> bool:
        """Whether it is being waited for here, so that a second delivery leaves it alone."""
        return message.id in self._waiting

    def steers(self, messages: Iterable[Message]) -> None:
        """These wishes have their turns here, so none of them may wait for another one of them."""
        self._steered |= {message.id for message in messages}

    def steered(self, message: Message) -> None:
        """This wish is dealt with, whatever became of it."""
        self._steered.discard(message.id)

    def stop(self) -> None:
        """Wait no more; what has not had its turn comes again."""
        self._stopping = True

    async def split(
        self, requests: Sequence[Asked], doubt: TooSoon
    ) -> tuple[list[Asked], list[tuple[Asked, StreamPosition]]]:
        """Those whose turn it is, for good now, and those for which ``turns`` must wait.

        Raises what Redis raises.
        """
        places = [place(m, r.command, doubt.refusals.get(r.saga_id)) for m, r in requests]
        late = await self._behind(places)
        self._waiting |= late
        sure = [(message, replace(request, doubtful=False)) for message, request in requests]
        queue = [(one, where) for one, where in zip(sure, places, strict=True) if where.id in late]
        return [one for one in sure if one[0].id not in late], queue

    async def turns(
        self, queue: Sequence[tuple[Asked, StreamPosition]]
    ) -> AsyncGenerator[list[Asked], None]:
        """The commands as their turns come; it ends when all had theirs, or the worker stops."""
        began, pause = time.monotonic(), _SOON
        try:
            while queue and not self._stopping:
                await asyncio.sleep(pause)
                pause = min(_SELDOM, pause * 1.5)
                try:
                    late = await self._late([where for _, where in queue], began)
                except (RedisError, OSError, TimeoutError) as trouble:
                    _logger.warning("refusing_retrying", reason=reason(trouble))
                    continue
                if ready := [one for one, where in queue if where.id not in late]:
                    yield ready
                    self._waiting -= {message.id for message, _ in ready}
                queue = [(one, where) for one, where in queue if where.id in late]
        finally:
            self._waiting -= {where.id for _, where in queue}

    def comes(self, message: Message, command: Command) -> Callable[[], Awaitable[bool]]:
        """For a wish that would be refused: waits for its turn; False when it has had it.

        What is returned raises ``Interrupted`` when the worker stops or Redis is away.
        """
        began, where = time.monotonic(), place(message, command)

        async def waited() -> bool:
            pause, before = _SOON, False
            self._waiting.add(message.id)
            try:
                while await self._late([where], began, self._steered):
                    if self._stopping:
                        raise Interrupted
                    await asyncio.sleep(pause)
                    pause, before = min(_SELDOM, pause * 1.5), True
            except RedisError as trouble:
                raise Interrupted from trouble
            finally:
                self._waiting.discard(message.id)
            return before

        return waited

    async def _late(
        self, places: Sequence[StreamPosition], began: float, but: Set[bytes] = frozenset()
    ) -> set[bytes]:
        """Those whose turn has not come; they stay this worker's. No wait is endless."""
        if time.monotonic() - began > LONGEST:
            return set()
        late = await self._behind(places, but)
        await streams.keep(self._redis, self._worker, sorted(late))
        return late

    async def _behind(
        self, places: Sequence[StreamPosition], but: Set[bytes] = frozenset()
    ) -> set[bytes]:
        """The ids of those before which something about the same is not acknowledged.

        ``but``: not counting these.
        """
        own = {where.id for where in places}
        pending = await streams.pending(self._redis, max(own, key=_rank))
        ahead = [id_ for id_ in pending if id_ not in own]
        # What an entry holds never changes, and who waits asks again and again.
        told = {id_: self._ahead[id_] for id_ in ahead if id_ in self._ahead}
        found = await streams.fields_of(self._redis, [id_ for id_ in ahead if id_ not in told])
        told |= {id_: _told(Message(id_, fields)) for id_, fields in found.items()}
        self._ahead = told
        others = [StreamPosition(id_, about) for id_, about in told.items() if id_ not in but]
        late: set[bytes] = set()
        blocked: set[str] = set()
        for where in sorted((*others, *places), key=lambda where: _rank(where.id)):
            if where.id not in own:
                blocked |= where.about
            elif blocked & where.about:
                late.add(where.id)
                blocked |= where.about
        return late


def place(message: Message, command: Command, refusal: Refusal | None = None) -> StreamPosition:
    """The place of a command; a ``refusal`` may say more of what it is about than itself."""
    about = _about(command)
    if refusal is not None:
        more = (refusal.organization_id, refusal.instance_name, refusal.existing_instance)
        about |= {_same(value) for value in more if value is not None}
    return StreamPosition(message.id, about)


def _told(message: Message) -> frozenset[str]:
    try:
        return _about(read_command(message.body()))
    except BadCommand:
        return frozenset()  # it will be a dead letter, and changes nothing


def _about(command: Command) -> frozenset[str]:
    """Its organization, its instance, and the saga that it starts or steers."""
    told = [command.data.get(name) for name in ("organization_id", "instance_name", "saga_id")]
    organization, instance, steered = [v if isinstance(v, str) else None for v in told]
    sagas = {_same(saga) for saga in (command.saga_id, steered) if saga is not None}
    named = {_same(value) for value in (organization, instance) if value is not None}
    return frozenset(named | sagas | {f"wa-{saga}" for saga in sagas})


def _same(value: Any) -> str:
    """One spelling for every UUID."""
    try:
        return str(UUID(str(value)))
    except ValueError:
        return str(value)


def _rank(message_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = message_id.partition(b"-")
    return int(milliseconds), int(number)
