"""Commands that were acknowledged and are not in Postgres, since its log went back.

Commands stay on the stream for a while after they were acknowledged, which they are only once they
are committed: one that Postgres does not know was taken back. It is put on the stream again as it
was sent; its id makes that harmless.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from evosaga.events import dead_letters, streams
from evosaga.events.commands import STEERING, BadCommand, Command, read_command
from evosaga.events.database import Pool
from evosaga.orchestrator.commands.claims import Request
from evosaga.orchestrator.commands.follow_ups import as_told, resolve_all
from evosaga.orchestrator.commands.subscriber import Message
from evosaga.sagas.registry import SagaRegistry

_PAGE: Final = 500
_POLL: Final = 0.1


@dataclass(frozen=True, slots=True)
class ForgottenCommand:
    """A command that was acknowledged and is not in Postgres."""

    message: Message
    command: Command

    @property
    def saga_id(self) -> UUID | None:
        """The saga that it starts; None where it is about another saga."""
        return None if self.command.type in STEERING else self.command.saga_id


async def forgotten_commands(
    pool: Pool, redis: Redis, registry: SagaRegistry, since: float | None
) -> list[ForgottenCommand]:
    """The acknowledged ones that Postgres does not know and that a worker would take.

    ``since``: a time in seconds. Replays and cancels before it were obeyed or refused for good; an
    old refusal must not become a replay. None: nothing was lost, so none of them is.
    """
    letters = await _letters(redis)
    found: list[ForgottenCommand] = []
    async for page in _acknowledged(redis):
        read: list[tuple[Message, Command]] = []
        for message in page:
            try:
                command = read_command(message.body())
            except BadCommand:
                continue
            if message.id not in letters:
                read.append((message, command))
        found += await _unknown(pool, registry, read, since)
    return found


async def _acknowledged(redis: Redis) -> AsyncIterator[list[Message]]:
    """Pages of entries that were delivered and are not pending, in order."""
    try:
        groups = await redis.xinfo_groups(streams.COMMANDS)
    except ResponseError:  # there is no stream
        return
    last = next(
        (g["last-delivered-id"] for g in groups if streams.as_text(g["name"]) == streams.GROUP),
        None,
    )
    if last is None:
        return
    pending = await streams.pending(redis)
    begin: str = "-"
    while True:
        entries: Any = await redis.xrange(
            streams.COMMANDS, min=begin, max=streams.as_text(last), count=_PAGE
        )
        yield [Message(id_, fields) for id_, fields in entries if id_ not in pending]
        if len(entries) < _PAGE:
            return
        begin = f"({streams.as_text(entries[-1][0])}"


async def _letters(redis: Redis) -> set[bytes]:
    """The ids of the messages that are dead letters."""
    found: set[bytes] = set()
    before: str | None = None
    while True:
        page, before = await dead_letters.page(redis, _PAGE, before)
        found |= {letter.message_id.encode() for letter in page}
        if before is None:
            return found


async def _unknown(
    pool: Pool,
    registry: SagaRegistry,
    read: Sequence[tuple[Message, Command]],
    since: float | None,
) -> list[ForgottenCommand]:
    steering = [(m, c) for m, c in read if c.type in STEERING and _after(m, since)]
    starting = [(m, c) for m, c in read if c.type not in STEERING]
    resolved = await resolve_all(pool, registry, [command for _, command in starting])
    asked = [
        (message, request.command)
        for (message, _), request in zip(starting, resolved, strict=True)
        if isinstance(request, Request)
    ]
    ids = [command.saga_id for _, command in asked]
    known = {row["saga_id"] for row in await pool.fetch(_KNOWN, ids)}
    found = [ForgottenCommand(m, c) for m, c in asked if c.saga_id not in known]
    for message, given in steering:
        command, about = await as_told(pool, given), uuid_of(given.data.get("saga_id"))
        if about and not await pool.fetchval(_STEERED, about, command.id, command.saga_id):
            found.append(ForgottenCommand(message, command))
    return sorted(found, key=lambda one: _place(one.message))


def _after(message: Message, since: float | None) -> bool:
    return since is not None and _place(message)[0] / 1000 >= since


def _place(message: Message) -> tuple[int, int]:
    milliseconds, _, number = message.id.decode().partition("-")
    return int(milliseconds), int(number)


async def take_again(redis: Redis, forgotten: Sequence[ForgottenCommand]) -> list[bytes]:
    """Put them on the stream again as they were sent, in their order; their new ids."""
    if not forgotten:
        return []
    pipeline = redis.pipeline(transaction=True)
    for one in forgotten:
        fields: dict[Any, Any] = dict(one.message.fields)
        pipeline.xadd(streams.COMMANDS, fields)
    return list(await pipeline.execute())


async def taken(redis: Redis, ids: Sequence[bytes], until: float) -> bool:
    """Wait until workers have acknowledged these; False when monotonic ``until`` comes first."""
    if not ids:
        return True
    newest = _place(Message(ids[-1], {}))
    while time.monotonic() < until:
        for group in await redis.xinfo_groups(streams.COMMANDS):
            if streams.as_text(group["name"]) != streams.GROUP:
                continue
            read = _place(Message(streams.as_text(group["last-delivered-id"]).encode(), {}))
            if read >= newest and not await _pending(redis, ids):
                return True
        await asyncio.sleep(_POLL)
    return False


async def _pending(redis: Redis, ids: Sequence[bytes]) -> bool:
    return not (await streams.pending(redis)).keys().isdisjoint(ids)


def uuid_of(value: Any) -> UUID | None:
    """None for what is no UUID."""
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None


_KNOWN: Final = """
SELECT saga_id FROM evosaga.sagas WHERE saga_id = ANY($1)
UNION SELECT saga_id FROM evosaga.refused WHERE saga_id = ANY($1)
"""
_STEERED: Final = """
SELECT EXISTS (SELECT FROM evosaga.saga_events WHERE saga_id = $1 AND causation_id = $2)
    OR EXISTS (SELECT FROM evosaga.sagas WHERE saga_id = $3 AND command_id = $2)
"""
