"""What an outsider can see at the end of a run: tables, Redis, Evolution's journal, the logs.

The checks (``safety``, ``liveness``, ``secrets``) get an ``Evidence`` and nothing else, so they can
be fed doctored ones, and no line of the product runs while they judge.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias
from uuid import UUID

from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.event_log import recorded_from
from evosaga.events.model import Recorded, SagaRejected, SagaStarted, StepSucceeded
from evosaga.events.redis_clients import masters
from evosaga.orchestrator.local.evolution.journal import JournalEntry
from evosaga.sagas.registry import SagaRegistry, discover
from evosaga.sagas.whatsapp.ownership import KeyRing, fingerprint

Entry: TypeAlias = "tuple[str, dict[str, bytes]]"
"""A stream's entry: its id and its fields."""

CREATED: Final = frozenset({"created", "half_created"})
REMOVED: Final = frozenset({"removed", "removed_from_memory", "removed_from_database"})
RESTORED: Final = "restored from a backup"


@dataclass(frozen=True)
class Violation:
    """A law that does not hold, and of what."""

    law: str
    about: str
    sentence: str
    saga_id: UUID | None = None

    def __str__(self) -> str:
        return f"{self.law} {self.about}: {self.sentence}"


@dataclass(frozen=True)
class Published:
    """A command that Redis acknowledged, as the publisher's own journal has it."""

    id: str
    kind: str
    """create, delete, cancel, replay, conflict (the id of another) or poison."""
    body: bytes
    at: float
    """UNIX seconds, when it was acknowledged last."""
    http: bool = False
    """Acknowledged by the API, so Redis can't have lost it."""


@dataclass(frozen=True)
class Excuses:
    """What was done on purpose that no product could repair without a person. UNIX seconds."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Instances that somebody changed by hand, and how."""
    redis_lost_at: Sequence[float] = ()
    """When Redis lost what it had acknowledged: flushed, or older data put back."""


@dataclass(frozen=True)
class Evidence:
    """Everything the checks look at."""

    histories: Mapping[UUID, Sequence[Recorded]]
    sagas: Mapping[UUID, Mapping[str, Any]]
    integrations: Mapping[UUID, Mapping[str, Any]]
    journal: Sequence[JournalEntry]
    live: Mapping[str, Mapping[str, Any]]
    """Instances in Evolution's memory, by name, and below those in its database."""
    rows: Mapping[str, Mapping[str, Any]]
    commands: Sequence[Entry]
    dead: Sequence[Entry]
    events: Sequence[Entry]
    cache: Mapping[str, tuple[bytes, int]]
    """Routing keys: instance name to value and time to live in milliseconds."""
    group: Mapping[str, int]
    """The workers' group: pending, lag."""
    cursor: int
    last_position: int
    database: Mapping[str, int]
    """Connections and the like, counted in Postgres after the run."""
    keys: KeyRing
    reconciled: bool = False
    """Whether the health check and the reconciler have looked at it since."""
    flagged: Mapping[UUID, str] = field(default_factory=dict)
    """Integrations of which the health check says that something is wrong, and what."""
    published: Sequence[Published] = ()
    excuses: Excuses = field(default_factory=Excuses)
    texts: Mapping[str, str] = field(default_factory=dict)
    """Dumps that must hold no secret: name to text."""
    snapshots: Sequence[str] = ()
    """What was wrong in snapshots that were taken while the run went on."""
    registry: SagaRegistry = field(default_factory=discover)

    def start(self, saga_id: UUID) -> SagaStarted | SagaRejected:
        """The event a history begins with."""
        first = self.histories[saga_id][0].event
        assert isinstance(first, SagaStarted | SagaRejected)
        return first

    def of(self, saga: str) -> Iterator[UUID]:
        """The ids of all sagas of that name that began."""
        for saga_id in self.histories:
            start = self.start(saga_id)
            if start.saga == saga and isinstance(start, SagaStarted):
                yield saga_id

    @cached_property
    def tokens(self) -> dict[str, UUID]:
        """Fingerprints of the birthmarks of all creates, and whose they are."""
        found: dict[str, UUID] = {}
        for saga_id in self.of("create-integration"):
            start = self.start(saga_id)
            assert isinstance(start, SagaStarted)
            token = self.keys.instance_token(saga_id, start.facts["key_id"])
            found[fingerprint(token)] = saga_id
        return found

    def instance(self, saga_id: UUID) -> str | None:
        """The instance that a saga is about."""
        start = self.start(saga_id)
        facts = start.facts if isinstance(start, SagaStarted) else {}
        return start.instance_name or facts.get("instance_name")

    def saved(self, saga_id: UUID) -> bool:
        """Whether the row of this create must be there, as the log has it."""
        there = False
        for recorded in self.histories[saga_id]:
            event = recorded.event
            if event.type == "step.succeeded" and event.step == "postgres":
                there = True
            elif event.type == "compensation.succeeded" and event.step == "postgres":
                there = False
        return there and saga_id not in self.deleted

    @cached_property
    def deleted(self) -> dict[UUID, UUID]:
        """Integrations whose rows were removed by delete sagas, and by which."""
        found: dict[UUID, UUID] = {}
        for saga_id in self.of("delete-integration"):
            start = self.start(saga_id)
            assert isinstance(start, SagaStarted)
            done = {
                r.event.step for r in self.histories[saga_id] if isinstance(r.event, StepSucceeded)
            }
            if "postgres" in done:
                found[UUID(start.facts["integration_id"])] = saga_id
        return found


async def gather(
    pool: Pool,
    redis: Redis,
    keys: KeyRing,
    journal: Iterable[JournalEntry],
    live: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    **more: Any,
) -> Evidence:
    """Look at all stores once; ``more`` are fields that only the caller knows."""
    events = await pool.fetch("SELECT * FROM evosaga.saga_events ORDER BY saga_id, sequence")
    histories: dict[UUID, list[Recorded]] = defaultdict(list)
    for event in events:
        histories[event["saga_id"]].append(recorded_from(event))
    return Evidence(
        histories=histories,
        sagas={r["saga_id"]: dict(r) for r in await pool.fetch("SELECT * FROM evosaga.sagas")},
        integrations={
            r["id"]: {**dict(r), "config": json.loads(r["config"])}
            for r in await pool.fetch("SELECT * FROM healthcare.integrations")
        },
        journal=list(journal),
        live=live,
        rows=rows,
        commands=await _stream(redis, streams.COMMANDS),
        dead=await _stream(redis, streams.DEAD_COMMANDS),
        events=await _stream(redis, streams.EVENTS),
        cache=await _cache(redis),
        group=await _group(redis),
        cursor=await pool.fetchval(_CURSOR, streams.EVENTS),
        last_position=max((e["position"] for e in events), default=0),
        database=dict(await pool.fetchrow(_DATABASE) or {}),
        keys=keys,
        flagged={r["id"]: r["state"] for r in await pool.fetch(_FLAGGED)},
        **more,
    )


async def _stream(redis: Redis, name: str) -> list[Entry]:
    found: Any = await redis.xrange(name)
    return [(i.decode(), {k.decode("latin-1"): v for k, v in f.items()}) for i, f in found]


async def _cache(redis: Redis) -> dict[str, tuple[bytes, int]]:
    found = {}
    for master in await masters(redis):
        async for key in master.scan_iter("whatsapp:instance:*", count=1000):
            value: Any = await redis.get(key)
            if value is not None:
                name = key.decode().removeprefix("whatsapp:instance:")
                found[name] = (value, await redis.pttl(key))
    return found


async def _group(redis: Redis) -> dict[str, int]:
    backlog = await streams.backlog(redis)
    if backlog is None:
        return {"pending": 0, "lag": 0}
    return {"pending": backlog.pending, "lag": backlog.lag if backlog.lag is not None else -1}


_CURSOR: Final = "SELECT position FROM evosaga.relay WHERE stream = $1"
_FLAGGED: Final = """
SELECT id, coalesce(state, status) AS state
FROM healthcare.integrations LEFT JOIN evosaga.connections ON integration_id = id
WHERE status = 'disconnected' OR state IN ('missing', 'half', 'foreign')
"""
_DATABASE: Final = """
SELECT count(*) FILTER (WHERE application_name = 'evosaga')::int AS connections,
       count(*) FILTER (WHERE state LIKE 'idle in transaction%'
                        AND state_change < now() - interval '10 seconds')::int AS stuck
FROM pg_stat_activity WHERE datname = current_database()
"""
