"""What a log that went back has forgotten, and what Redis still knows of it.

Commands stay on the stream for a while after they were acknowledged, which they are only once they
are committed: one that Postgres does not know was taken back. It is put on the stream again as it
was sent; its id makes that harmless. Events tell which sagas there were, also those whose commands
came over HTTP and can only be asked for again by whoever sent them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from redis.asyncio import Redis

from evosaga.events import dead_letters, log_loss, published, streams
from evosaga.events.commands import STEERING, BadCommand, Command, read_command
from evosaga.events.database import Pool
from evosaga.events.published import PublishedEvent
from evosaga.orchestrator.commands.claims import Request
from evosaga.orchestrator.commands.follow_ups import as_told, resolve_all
from evosaga.orchestrator.commands.subscriber import Message
from evosaga.sagas.registry import SagaRegistry

_PAGE: Final = 500
_QUIET_PAGES: Final = 3
"""Pages of the stream without a forgotten event, behind which none is looked for."""
_LEEWAY: Final = 60.0
"""Seconds that a command may have waited on the stream before it was obeyed."""
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


@dataclass(frozen=True, slots=True)
class ForgottenSaga:
    """A saga some of whose events are on the stream and not in Postgres.

    ``known``: Postgres has its beginning; it goes on from there. ``last``: the type of the last
    event that was published. What a trimmed stream does not say any more is None.
    """

    saga_id: UUID
    known: bool
    events: int
    last: str
    at: datetime
    saga: str | None = None
    organization_id: UUID | None = None
    instance_name: str | None = None
    command: str | None = None
    command_id: str | None = None
    public: bool = False
    """Whether somebody outside asked for it, and not evosaga itself."""

    @property
    def lost(self) -> bool:
        """Whether somebody waits for what it was to do, and only they can ask for it again."""
        over = self.last in ("saga.rejected", "saga.compensated")
        return self.public and not self.known and not over


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something outside that a forgotten saga made, and no store of ours names.

    ``command``: what mends it; None: a person has to decide, and ``repair`` says how.
    """

    what: str
    where: str
    organization_id: UUID | None
    cause: str
    repair: str
    does: Literal["adopt", "remove"] | None = None
    command: Command | None = None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """All of it. ``kept_at``: when the newest published event that the log has was recorded."""

    commands: Sequence[ForgottenCommand]
    sagas: Sequence[ForgottenSaga]
    kept_at: datetime | None


async def look(pool: Pool, redis: Redis, registry: SagaRegistry) -> Forgotten:
    """What was forgotten; nothing is changed. Raises what the stores raise."""
    lost, kept_at = await _lost_events(pool, redis)
    sagas = await _sagas(pool, registry, lost)
    since = kept_at.timestamp() - _LEEWAY if lost and kept_at else None
    return Forgotten(await _commands(pool, redis, registry, since), sagas, kept_at)


# --- events -----------------------------------------------------------------------------------


async def _lost_events(pool: Pool, redis: Redis) -> tuple[list[PublishedEvent], datetime | None]:
    """The events of this epoch that the log lacks; they are at the end of what was published."""
    epoch = await log_loss.epoch(pool)
    lost: list[PublishedEvent] = []
    kept_at: datetime | None = None
    quiet = 0
    async for page in published.pages(redis):
        seen = [one for one in page if one.epoch >= epoch]
        missing = await log_loss.missing(pool, seen)
        lost += missing
        gone = {one.id for one in missing}
        kept = (one.recorded_at for one in seen if one.id not in gone)
        kept_at = max(kept, default=kept_at) if kept_at is None else kept_at
        quiet = 0 if missing else quiet + 1
        if quiet == _QUIET_PAGES:
            break
    return lost, kept_at


async def _sagas(
    pool: Pool, registry: SagaRegistry, lost: Sequence[PublishedEvent]
) -> list[ForgottenSaga]:
    by_saga: dict[UUID, dict[int, PublishedEvent]] = {}
    for event in lost:
        by_saga.setdefault(event.saga_id, {}).setdefault(event.sequence, event)
    rows = await pool.fetch(_SAGAS, list(by_saga))
    known = {row["saga_id"] for row in rows}
    public = {saga.name for saga in registry.public.values()}
    found = [_saga(events, id_ in known, public) for id_, events in by_saga.items()]
    return sorted(found, key=lambda one: (one.at, one.saga_id))


def _saga(events: dict[int, PublishedEvent], known: bool, public: Set[str]) -> ForgottenSaga:
    first, last = events[min(events)], events[max(events)]
    data = dict(last.data) | dict(first.data)
    return ForgottenSaga(
        saga_id=last.saga_id,
        known=known,
        events=len(events),
        last=last.type,
        at=last.recorded_at,
        saga=_text(data.get("saga")),
        organization_id=_uuid(data.get("organization_id")),
        instance_name=_text(data.get("instance_name")),
        command=_text(data.get("command")),
        command_id=_text(data.get("command_id")),
        public=data.get("saga") in public,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _uuid(value: Any) -> UUID | None:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None


# --- commands ---------------------------------------------------------------------------------


async def _commands(
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
    groups = await redis.xinfo_groups(streams.COMMANDS) if await _there(redis) else []
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


async def _there(redis: Redis) -> bool:
    return bool(await redis.exists(streams.COMMANDS))


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
        command, about = await as_told(pool, given), _uuid(given.data.get("saga_id"))
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


_SAGAS: Final = "SELECT saga_id FROM evosaga.sagas WHERE saga_id = ANY($1)"
_KNOWN: Final = """
SELECT saga_id FROM evosaga.sagas WHERE saga_id = ANY($1)
UNION SELECT saga_id FROM evosaga.refused WHERE saga_id = ANY($1)
"""
_STEERED: Final = """
SELECT EXISTS (SELECT FROM evosaga.saga_events WHERE saga_id = $1 AND causation_id = $2)
    OR EXISTS (SELECT FROM evosaga.sagas WHERE saga_id = $3 AND command_id = $2)
"""
