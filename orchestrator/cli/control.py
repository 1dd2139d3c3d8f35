"""The verbs that steer sagas: replay and cancel, one or many."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from evosaga.orchestrator.cli import bulk, connections
from evosaga.orchestrator.cli.errors import DONE, INTERRUPTED, UNFINISHED
from evosaga.orchestrator.cli.integrations import new_id, published, raise_if_dead, refused, workers
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.result import tell_outcome
from evosaga.orchestrator.cli.show import find

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings

_ONE_SECONDS: Final = 60.0
_MANY_SECONDS: Final = 600.0


def replay(arguments: argparse.Namespace, out: Output) -> int:
    """Give sagas another try, or say what that would do."""
    bulk.check_choice(arguments, "replay")
    if arguments.plan:
        from evosaga.orchestrator.cli.replay_plan import show_plans

        return show_plans(arguments, out)
    return _steer(arguments, out, "saga.replay", "completed")


def cancel(arguments: argparse.Namespace, out: Output) -> int:
    """Stop sagas and undo them."""
    bulk.check_choice(arguments, "cancel")
    return _steer(arguments, out, "saga.cancel", "compensated")


def _steer(arguments: argparse.Namespace, out: Output, kind: str, wanted: str) -> int:
    one = len(arguments.references) == 1
    if arguments.timeout is None:
        arguments.timeout = _ONE_SECONDS if one else _MANY_SECONDS
    work = _steer_one if one else _steer_many
    with connections.servers(out) as settings:
        try:
            return asyncio.run(work(settings, kind, wanted, arguments, out))
        except KeyboardInterrupt:
            out.problem("stopped watching; what was published goes on: evosaga list")
            return INTERRUPTED


async def _steer_many(
    settings: Settings, kind: str, wanted: str, arguments: argparse.Namespace, out: Output
) -> int:
    verb = kind.rpartition(".")[2]
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        sagas = await bulk.chosen(pool, arguments)
        if not sagas:
            out.note("no saga fits, so there is nothing to do")
            if out.json:
                return bulk.report(kind, [], wanted, out)
            return DONE
        if not bulk.agreed(f"{verb} {len(sagas)} sagas?", arguments, out):
            out.note("nothing was done")
            return UNFINISHED
        await workers(pool, out)
        wishes = await bulk.steer_all(pool, redis, kind, sagas, arguments, out)
        if arguments.no_wait:
            out.note(f"published {len(wishes)} commands; see: evosaga list")
            return DONE
        return bulk.report(kind, wishes, wanted, out)


async def _steer_one(
    settings: Settings, kind: str, wanted: str, arguments: argparse.Namespace, out: Output
) -> int:
    from evosaga.events import streams
    from evosaga.orchestrator.cli.follow import Seen, follow
    from evosaga.orchestrator.cli.render import timeline

    command_id = new_id()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        saga_id = (await find(pool, arguments.references[0])).saga_id
        await _judge(pool, kind, saga_id)
        company = await workers(pool, out)
        data: dict[str, Any] = {"saga_id": str(saga_id)}
        if arguments.reason:
            data["reason"] = arguments.reason
        body = {"id": command_id, "type": kind, "data": data}
        message_id = await streams.publish_command(redis, body)
        if arguments.no_wait:
            return published(command_id, str(saga_id), message_id, out)
        began, deadline = time.monotonic(), time.monotonic() + arguments.timeout
        steered: UUID | None = None
        while steered is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            steered = await _obeyed(pool, redis, saga_id, command_id, message_id)
            await company()
        seen = Seen()
        if steered is not None:
            with timeline(out) as watch:
                left = max(0.0, deadline - time.monotonic())
                seen = await follow(pool, steered, watch, timeout=left)
        spent = time.monotonic() - began
        return await tell_outcome(seen, redis, spent, str(steered or saga_id), out, wanted=wanted)


async def _judge(pool: Pool, kind: str, saga_id: UUID) -> None:
    """Refuse here what a worker would refuse, as far as the saga's history tells. ``Trouble``."""
    from evosaga.events.commands import BadCommand
    from evosaga.orchestrator.commands.control import check_allowed
    from evosaga.orchestrator.engine.state import IllegalTransition, replay
    from evosaga.orchestrator.queries.sagas import Unreadable, history
    from evosaga.sagas import registry

    known = registry.discover()
    try:
        state = replay(recorded.event for recorded in await history(pool, saga_id))
    except (Unreadable, IllegalTransition):
        return  # the workers may be of a newer release
    if state.start is None or known.find(state.start.saga, state.start.version) is None:
        return
    try:
        check_allowed(known, kind, state)
    except BadCommand as refusal:
        raise refused(refusal.code, refusal.message) from None


async def _obeyed(
    pool: Pool, redis: Redis, saga_id: UUID, command_id: str, message_id: str
) -> UUID | None:
    """The saga to watch once the command was obeyed: the old one, or one that starts anew.

    None as long as nobody has obeyed. Raises when the command was refused.
    """
    from evosaga.orchestrator.queries.sagas import find_saga, history

    if any(r.causation_id == command_id for r in await history(pool, saga_id)):
        return saga_id
    anew = await find_saga(pool, command_id)
    if anew is not None:
        return anew.saga_id
    await raise_if_dead(redis, message_id)
    return None
