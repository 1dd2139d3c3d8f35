"""The verbs that steer sagas: replay and cancel, one or many."""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from orchestrator.cli import bulk, places
from orchestrator.cli.asking import new_id, published, raise_if_dead, refused, workers
from orchestrator.cli.outcome import tell_outcome
from orchestrator.cli.output import Output
from orchestrator.cli.reading import find
from orchestrator.cli.trouble import DONE, INTERRUPTED, UNFINISHED

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from events.database import Pool
    from orchestrator.config import Settings

_ONE_SECONDS: Final = 60.0
_MANY_SECONDS: Final = 600.0


def replay(arguments: argparse.Namespace, out: Output) -> int:
    """Give sagas another try, or say what that would do."""
    bulk.check_choice(arguments, "replay")
    if arguments.plan:
        from orchestrator.cli.planning import show_plans

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
    with places.servers(out) as settings:
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
        pool = await stack.enter_async_context(places.postgres(settings))
        redis = await stack.enter_async_context(places.own_redis(settings, pool))
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
    from events import streams
    from orchestrator.cli.following import Seen, follow
    from orchestrator.cli.picture import timeline

    command_id = new_id()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(places.postgres(settings))
        redis = await stack.enter_async_context(places.own_redis(settings, pool))
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
    from events.commands import BadCommand
    from orchestrator.queries import Unreadable, history
    from orchestrator.state import IllegalTransition, replay
    from orchestrator.steering.steer import judge
    from sagas import catalogue

    known = catalogue.load()
    try:
        state = replay(recorded.event for recorded in await history(pool, saga_id))
    except (Unreadable, IllegalTransition):
        return  # the workers may be of a newer release
    if state.start is None or known.find(state.start.saga, state.start.version) is None:
        return
    try:
        judge(known, kind, state)
    except BadCommand as refusal:
        raise refused(refusal.code, refusal.message) from None


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
