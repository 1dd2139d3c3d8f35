"""The verbs ``replay`` and ``cancel``, of one saga or many."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

from cyclopts import Parameter

from evosaga.orchestrator.cli import bulk, connections, params
from evosaga.orchestrator.cli.confirm import confirmed
from evosaga.orchestrator.cli.errors import DONE, INTERRUPTED, UNFINISHED
from evosaga.orchestrator.cli.integrations import new_id, published, raise_if_dead, refused, workers
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.show import find

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.config.settings import Settings

_Options = Annotated[params.Selection, Parameter(name="*")]
_NONE: Final = params.Selection()


def replay(
    *references: params.References,
    plan: bool = False,
    status: Literal["failed", "compensated"] | None = None,
    selection: _Options = _NONE,
    out: params.Out,
) -> int:
    """Give sagas another try, or say what that would do.

    Args:
        plan: show what it would do to the world and why, and change nothing
        status: all of these
    """
    chosen = replace(selection, references=references, status=status)
    bulk.check_selection("replay", chosen)
    if plan:
        from evosaga.orchestrator.cli.replay_plan import show_plans

        return show_plans(chosen, out)
    return _steer("saga.replay", "completed", chosen, out)


def cancel(
    *references: params.References,
    status: Literal["running", "compensating", "failed", "held"] | None = None,
    selection: _Options = _NONE,
    out: params.Out,
) -> int:
    """Stop sagas and undo them.

    Args:
        status: all of these
    """
    chosen = replace(selection, references=references, status=status)
    bulk.check_selection("cancel", chosen)
    return _steer("saga.cancel", "compensated", chosen, out)


def _steer(kind: str, wanted: str, selection: params.Selection, out: Output) -> int:
    work = _steer_one if len(selection.references) == 1 else _steer_many
    with connections.servers(out) as settings:
        try:
            return asyncio.run(work(settings, kind, wanted, selection, out))
        except KeyboardInterrupt:
            out.problem("stopped watching; what was published goes on: evosaga list")
            return INTERRUPTED


async def _steer_many(
    settings: Settings, kind: str, wanted: str, selection: params.Selection, out: Output
) -> int:
    verb = kind.rpartition(".")[2]
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        sagas = await bulk.chosen(pool, selection)
        if not sagas:
            out.note("no saga fits, so there is nothing to do")
            if out.json:
                return bulk.report(kind, [], wanted, out)
            return DONE
        if not selection.yes and not confirmed(f"{verb} {len(sagas)} sagas?", out):
            out.note("nothing was done")
            return UNFINISHED
        await workers(pool, out)
        wishes = await bulk.steer_all(pool, redis, kind, sagas, selection, out)
        if selection.no_wait:
            out.note(f"published {len(wishes)} commands; see: evosaga list")
            return DONE
        return bulk.report(kind, wishes, wanted, out)


async def _steer_one(
    settings: Settings, kind: str, wanted: str, selection: params.Selection, out: Output
) -> int:
    from evosaga.events import streams
    from evosaga.orchestrator.cli.follow import Seen, follow
    from evosaga.orchestrator.cli.render import timeline
    from evosaga.orchestrator.cli.result import tell_outcome

    command_id = new_id()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        saga_id = (await find(pool, selection.references[0])).saga_id
        await _judge(pool, kind, saga_id)
        company = await workers(pool, out)
        data: dict[str, Any] = {"saga_id": str(saga_id)}
        if selection.reason:
            data["reason"] = selection.reason
        body = {"id": command_id, "type": kind, "data": data}
        message_id = await streams.publish_command(redis, body)
        if selection.no_wait:
            return published(command_id, str(saga_id), message_id, out)
        began, deadline = time.monotonic(), time.monotonic() + selection.patience
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
    from evosaga.orchestrator import app
    from evosaga.orchestrator.commands.control import check_allowed
    from evosaga.orchestrator.engine.state import IllegalTransition
    from evosaga.orchestrator.engine.state import replay as state_of
    from evosaga.orchestrator.queries.sagas import Unreadable, history

    known = app.registry()
    try:
        state = state_of(recorded.event for recorded in await history(pool, saga_id))
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
