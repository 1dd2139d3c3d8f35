"""One event of each type, as consumers of ``evosaga:events`` read them."""

import json
import uuid
from typing import Any

from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from tests.contract.golden import assert_golden, shape
from tests.support.driving import create, delete, entries, impatient, outcome, publish
from tests.support.waiting import eventually

TYPES = {
    "saga.started",
    "saga.rejected",
    "step.started",
    "step.succeeded",
    "step.failed",
    "compensation.began",
    "compensation.started",
    "compensation.succeeded",
    "compensation.failed",
    "saga.completed",
    "saga.compensated",
    "saga.failed",
    "saga.resumed",
    "saga.cancel_requested",
}


async def test_each_type_of_event_has_the_fields_that_were_promised(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings, impatient(1)):
        made = await outcome(pool, await publish(redis, create()))
        assert made.status == "completed"
        again = create(organization_id=str(made.organization_id))
        await outcome(pool, await publish(redis, again))
        await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        # Refused behind its third step, which can't be undone at first: parked, then replayed.
        parked = create()
        await redis.set(f"evosaga:removed:wa-{parked['id']}", parked["id"])
        evolution.arm("5xx_before", operation="delete", times=None)
        assert (await outcome(pool, await publish(redis, parked), 30)).status == "failed"
        evolution.disarm()
        await publish(redis, control("saga.replay", parked["id"]))
        await eventually(lambda: status(pool, parked["id"], "compensated"), 30)
        # Cancelled on its way.
        evolution.arm("slow", operation="create", times=1, seconds=1.0)
        cancelled = await publish(redis, create())
        await eventually(lambda: status(pool, cancelled, "running"))
        await publish(redis, control("saga.cancel", cancelled))
        await outcome(pool, cancelled, 30)

        async def told() -> bool:
            return {e["type"] for e in await events(redis)} >= TYPES

        await eventually(told, 20, message="every type of event")
    first: dict[str, Any] = {}
    for event in await events(redis):
        if event["type"] in TYPES:
            first.setdefault(event["type"], shape(event))
    assert_golden("events", first)


def control(kind: str, saga_id: str) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "type": kind, "data": {"saga_id": saga_id}}


async def status(pool: Pool, reference: str, wanted: str) -> bool:
    saga = await find_saga(pool, reference)
    return saga is not None and saga.status == wanted


async def events(redis: Redis) -> list[dict[str, Any]]:
    return [json.loads(fields[b"data"]) for _, fields in await entries(redis, streams.EVENTS)]
