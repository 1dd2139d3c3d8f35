"""Short words for what most tests do: publish a command and see how the saga ends."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.events.event_log import EventLog, recorded_from
from evosaga.events.model import Recorded
from evosaga.orchestrator.engine.decider import advance
from evosaga.orchestrator.engine.projection import status_row
from evosaga.orchestrator.engine.state import replay
from evosaga.orchestrator.queries.sagas import SagaView, find_saga, history
from evosaga.sagas.definition import Retry
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from tests.support.waiting import eventually


def create(**overrides: Any) -> dict[str, Any]:
    """A valid ``integration.create`` command; ``overrides`` go into its data."""
    data = {
        "organization_id": str(uuid.uuid4()),
        "clinic_id": str(uuid.uuid4()),
        "name": "Clínica Sol",
        "channel": "EVOLUTION",
    }
    return {"id": str(uuid.uuid4()), "type": "integration.create", "data": data | overrides}


def delete(instance_name: str, **overrides: Any) -> dict[str, Any]:
    """An ``integration.delete`` command."""
    data = {"instance_name": instance_name} | overrides
    return {"id": str(uuid.uuid4()), "type": "integration.delete", "data": data}


async def publish(redis: Redis, command: dict[str, Any]) -> str:
    """XADD the command; its id."""
    await streams.publish_command(redis, command)
    return str(command["id"])


async def outcome(pool: Pool, reference: str, timeout: float = 15.0) -> SagaView:
    """The saga once nothing more happens by itself."""
    found: list[SagaView] = []

    async def over() -> bool:
        saga = await find_saga(pool, reference)
        found[:] = [saga] if saga else []
        return saga is not None and saga.over

    await eventually(over, timeout, message=f"saga {reference} to end, now {found}")
    return found[0]


async def story(pool: Pool, saga: SagaView) -> list[str]:
    """The saga's events as short lines: ``step.succeeded evolution``."""
    events = [recorded.event for recorded in await history(pool, saga.saga_id)]
    return [" ".join(filter(None, (e.type, getattr(e, "step", None)))) for e in events]


async def told(pool: Pool, reference: str, line: str) -> bool:
    """Whether the saga's history has this line of its ``story``."""
    saga = await find_saga(pool, reference)
    return saga is not None and line in await story(pool, saga)


def impatient(attempts: int = 2) -> SagaRegistry:
    """The same sagas with few attempts and short pauses."""
    retry = Retry(attempts=attempts, first=0.05, factor=1.0)
    return registry_of(
        replace(saga, steps=tuple(replace(step, retry=retry) for step in saga.steps))
        for saga in discover().versions.values()
    )


async def contradictions(pool: Pool, registry: SagaRegistry | None = None) -> list[str]:
    """Where status rows and histories disagree: the sagas of which one was not told the other."""
    async with pool.acquire() as one, one.transaction(isolation="repeatable_read"):
        # One snapshot: a saga that goes on meanwhile contradicts nothing.
        sagas = await one.fetch("SELECT * FROM evosaga.sagas")
        events = await one.fetch("SELECT * FROM evosaga.saga_events ORDER BY saga_id, sequence")
    histories: dict[uuid.UUID, list[Recorded]] = {}
    for event in events:
        histories.setdefault(event["saga_id"], []).append(recorded_from(event))
    orphans = len(histories.keys() - {saga["saga_id"] for saga in sagas})
    found = [f"{orphans} events have no saga"] if orphans else []
    registry = registry or discover()
    for saga in sagas:
        recorded = histories.get(saga["saga_id"], [])
        if [r.sequence for r in recorded] != list(range(saga["next_sequence"])):
            found.append(f"{saga['saga_id']}: {len(recorded)} events, row says {dict(saga)}")
            continue
        state = replay(r.event for r in recorded)
        definition = registry.find(saga["saga"], saga["version"])
        assert definition is not None
        _, _, action = advance(definition, state)
        told = status_row(definition, state, action, saga["owner"])
        # A hold after the first moves the row alone, with the newest words for it.
        words = () if saga["holds"] else ("code", "message")
        for field in ("status", "step", "direction", "attempt", *words):
            if getattr(told, field) != saga[field]:
                found.append(f"{saga['saga_id']}: {field} is {saga[field]}, history says {told}")
    return found


async def entries(redis: Redis, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """A whole stream: ids and fields."""
    found: Any = await redis.xrange(stream)
    return list(found)


async def count(pool: Pool, query: str, *values: Any) -> int:
    """The number that a query answers."""
    number: int = await pool.fetchval(query, *values)
    return number


async def dead_letters(redis: Redis) -> list[dict[str, Any]]:
    """What is in the dead-letter stream, as text; what came from outside stays bytes."""
    return [
        {
            k.decode("latin-1"): v if k.startswith((b"data", b"field:")) else v.decode()
            for k, v in fields.items()
        }
        for _, fields in await entries(redis, streams.DEAD_COMMANDS)
    ]


async def nothing_pending(redis: Redis) -> bool:
    """Whether every command was read and acknowledged."""
    backlog = await streams.backlog(redis)
    return backlog is not None and backlog.pending == 0 and backlog.lag == 0


@contextlib.asynccontextmanager
async def running_log(
    pool: Pool, on_commit: Callable[[], None] = lambda: None
) -> AsyncIterator[EventLog]:
    """An event log with its writer running, stopped at the end."""
    log = EventLog(pool, on_commit)
    writer = asyncio.create_task(log.run(), name="event-log")
    try:
        yield log
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
