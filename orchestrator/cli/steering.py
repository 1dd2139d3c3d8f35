"""The verbs that steer a saga: replay and cancel."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import UUID

from orchestrator.cli import places
from orchestrator.cli.asking import new_id, published, raise_if_dead, workers
from orchestrator.cli.outcome import tell_outcome
from orchestrator.cli.output import Output
from orchestrator.cli.reading import find

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from events.database import Pool
    from orchestrator.cli.following import Seen
    from orchestrator.config import Settings


def replay(arguments: argparse.Namespace, out: Output) -> int:
    """Give a saga another try."""
    with places.servers(out) as settings:
        return asyncio.run(_steer(settings, "saga.replay", "completed", arguments, out))


def cancel(arguments: argparse.Namespace, out: Output) -> int:
    """Stop a saga and undo it."""
    with places.servers(out) as settings:
        return asyncio.run(_steer(settings, "saga.cancel", "compensated", arguments, out))


async def _steer(
    settings: Settings, type_: str, wanted: str, arguments: argparse.Namespace, out: Output
) -> int:
    from events import streams
    from orchestrator.cli.following import follow
    from orchestrator.cli.picture import timeline

    command_id = new_id()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(places.postgres(settings))
        redis = await stack.enter_async_context(places.redis(settings))
        saga_id = (await find(pool, arguments.reference)).saga_id
        company = await workers(pool, out)
        data: dict[str, Any] = {"saga_id": str(saga_id)}
        if arguments.reason:
            data["reason"] = arguments.reason
        body = {"id": command_id, "type": type_, "data": data}
        message_id = await streams.publish_command(redis, body)
        if arguments.no_wait:
            return published(command_id, str(saga_id), message_id, out)
        began, deadline = time.monotonic(), time.monotonic() + arguments.timeout
        steered: UUID | None = None
        while steered is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            steered = await _obeyed(pool, redis, saga_id, command_id, message_id)
            await company()
        if steered is None:
            from orchestrator.cli.following import Seen

            return await tell_outcome(
                Seen(), redis, time.monotonic() - began, str(saga_id), out, wanted=wanted
            )
        with timeline(out) as watch:
            left = max(0.0, deadline - time.monotonic())
            seen: Seen = await follow(pool, steered, watch, timeout=left)
        spent = time.monotonic() - began
        return await tell_outcome(seen, redis, spent, str(steered), out, wanted=wanted)


async def _obeyed(
    pool: Pool, redis: Redis, saga_id: UUID, command_id: str, message_id: str
) -> UUID | None:
    """The saga to watch once the command was obeyed: the old one, or one that starts anew.

    None as long as nobody has obeyed. Raises when the command was refused.
    """
    from orchestrator.queries import find_saga, history

    if any(r.causation_id == command_id for r in await history(pool, saga_id)):
        return saga_id
    anew = await find_saga(pool, command_id)
    if anew is not None:
        return anew.saga_id
    await raise_if_dead(redis, message_id)
    return None
