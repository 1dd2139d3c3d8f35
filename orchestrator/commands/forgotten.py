"""What a log that went back has forgotten, and what Redis still knows of it.

The commands that came over the stream are still there (``forgotten_commands``). Events tell which
sagas there were, also those whose commands came over HTTP and can only be asked for again by
whoever sent them.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from redis.asyncio import Redis

from evosaga.events import log_loss, published
from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.events.published import PublishedEvent
from evosaga.orchestrator.commands.forgotten_commands import (
    ForgottenCommand,
    forgotten_commands,
    uuid_of,
)
from evosaga.sagas.registry import SagaRegistry

_QUIET_PAGES: Final = 3
"""Pages of the stream without a forgotten event, behind which none is looked for."""
_LEEWAY: Final = 60.0
"""Seconds that a command may have waited on the stream before it was obeyed."""


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
    return Forgotten(await forgotten_commands(pool, redis, registry, since), sagas, kept_at)


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
        organization_id=uuid_of(data.get("organization_id")),
        instance_name=_text(data.get("instance_name")),
        command=_text(data.get("command")),
        command_id=_text(data.get("command_id")),
        public=data.get("saga") in public,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_SAGAS: Final = "SELECT saga_id FROM evosaga.sagas WHERE saga_id = ANY($1)"
