"""Short words for what most tests do: publish a command and see how the saga ends."""

import uuid
from typing import Any

from redis.asyncio import Redis

from events import streams
from events.database import Pool
from orchestrator.queries import SagaView, find_saga, history
from tests.waiting import eventually


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
