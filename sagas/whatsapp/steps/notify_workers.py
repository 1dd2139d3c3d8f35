"""Pub/sub for the routing workers. A hint: a worker that missed one reads Postgres."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from evosaga.sagas.outcome import Done, Outcome
from evosaga.sagas.whatsapp.steps.routing_key import trouble

if TYPE_CHECKING:
    from evosaga.sagas.whatsapp.services import Context

ADDED: Final = "wa:instances:added"
REMOVED: Final = "wa:instances:removed"


async def announce_added(ctx: "Context") -> Outcome:
    """Tell the routing workers that an instance is there."""
    return await _publish(ctx, ADDED, str(ctx.input.organization_id), str(ctx.input.clinic_id))


async def announce_adopted(ctx: "Context") -> Outcome:
    """The same for an instance that was there already, and that a row names now."""
    return await _publish(ctx, ADDED, ctx.facts["organization_id"], ctx.facts.get("clinic_id"))


async def announce_removed(ctx: "Context") -> Outcome:
    """Tell the routing workers that an instance is gone."""
    return await _publish(ctx, REMOVED, ctx.facts["organization_id"], ctx.facts.get("clinic_id"))


async def _publish(
    ctx: "Context", channel: str, organization_id: str | None, clinic_id: str | None
) -> Outcome:
    message = {
        "instance_name": ctx.facts["instance_name"],
        "organization_id": organization_id,
        "clinic_id": clinic_id,
        "saga_id": str(ctx.saga_id),
        "at": datetime.now(UTC).isoformat(),
    }
    try:
        await ctx.services.redis.publish(channel, json.dumps(message))
    except RedisError as error:
        return trouble(error)
    return Done()
