"""The verbs ``create`` and ``delete``: publish a command, then watch its saga."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.confirm import agreed_to_delete
from evosaga.orchestrator.cli.errors import DONE, INTERRUPTED, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.output import Output

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.cli.follow import Seen
    from evosaga.orchestrator.commands.accept import Request
    from evosaga.orchestrator.config.settings import Settings

_DEAD_EVERY: Final = 0.3
_WORKERS_EVERY: Final = 3.0
_HASH: Final = "SELECT command_hash FROM evosaga.sagas WHERE saga_id = $1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How a command is published and watched."""

    id: Annotated[
        params.Text | None,
        Parameter(
            help="the command's id, which makes it safe to repeat; made when left out",
            metavar="ID",
        ),
    ] = None
    no_wait: params.NoWait = False
    timeout: Annotated[
        params.Seconds,
        Parameter(help="how long to watch (default: 60); the saga goes on after that"),
    ] = 60.0


Yes = Annotated[
    bool, Parameter(help="don't ask first; without a terminal there is no question", alias="-y")
]
_Options = Annotated[Asking, Parameter(name="*")]
_DEFAULTS: Final = Asking()


def create(
    *,
    organization_id: params.Uuid,
    clinic_id: params.Uuid,
    name: params.Name,
    instance_name: params.Name | None = None,
    channel: Literal["WHATSAPP-BAILEYS", "EVOLUTION"] | None = None,
    number: Annotated[params.Text | None, Parameter(metavar="DIGITS")] = None,
    webhook_url: params.Url | None = None,
    server: params.Name | None = None,
    asking: _Options = _DEFAULTS,
    out: params.Out,
) -> int:
    """Ask for an integration, and show the QR code once it is there.

    Args:
        organization_id: whose it is
        clinic_id: which clinic it serves
        name: what people call it, 1 to 120 characters
        instance_name: derived from the id when left out
        channel: WHATSAPP-BAILEYS (the default) is paired by QR code
        number: asks for a pairing code as well
        webhook_url: its host must be in EVOSAGA_WEBHOOK_HOSTS
        server: one of EVOSAGA_EVOLUTION_SERVERS
    """
    given = {
        "organization_id": organization_id,
        "clinic_id": clinic_id,
        "name": name,
        "instance_name": instance_name,
        "channel": channel,
        "number": number,
        "webhook_url": webhook_url,
        "server": server,
    }
    return ask("integration.create", given, asking, out)


def delete(
    instance_name: params.InstanceName,
    /,
    *,
    organization_id: params.Uuid | None = None,
    yes: Yes = False,
    asking: _Options = _DEFAULTS,
    out: params.Out,
) -> int:
    """Ask for the end of an integration.

    Args:
        organization_id: refuse unless it belongs to this organization
    """
    if not yes and not agreed_to_delete(instance_name, out):
        return UNFINISHED
    given = {"instance_name": instance_name, "organization_id": organization_id}
    return ask("integration.delete", given, asking, out)


def new_id() -> str:
    """A command id, which is the saga's id as well; in order of time."""
    from uuid_utils.compat import uuid7

    return str(uuid7())


def ask(type_: str, given: Mapping[str, Any], asking: Asking, out: Output) -> int:
    """Publish a command and watch its saga. Raises ``BadCommand`` where a worker would refuse."""
    from evosaga.events.commands import read_command
    from evosaga.orchestrator import app
    from evosaga.orchestrator.commands.accept import parse_request

    data = {name: value for name, value in given.items() if value is not None}
    body = {"id": asking.id or new_id(), "type": type_, "data": data}
    # As the worker will see it, so that what it would refuse is refused here and now.
    request = parse_request(app.registry(), read_command(json.dumps(body).encode()))
    with connections.servers(out) as settings:
        try:
            return asyncio.run(_publish_and_follow(settings, body, request, asking, out))
        except KeyboardInterrupt:
            saga_id = request.command.saga_id
            out.problem(f"stopped watching; the saga goes on: evosaga status {saga_id}")
            return INTERRUPTED


async def _publish_and_follow(
    settings: Settings,
    body: dict[str, Any],
    request: Request,
    asking: Asking,
    out: Output,
) -> int:
    from evosaga.events import streams
    from evosaga.orchestrator.cli.follow import follow
    from evosaga.orchestrator.cli.render import timeline
    from evosaga.orchestrator.cli.result import tell_outcome

    saga_id = request.command.saga_id
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connections.postgres(settings))
        redis = await stack.enter_async_context(connections.own_redis(settings, pool))
        known = await pool.fetchval(_HASH, saga_id)
        if known not in (None, request.command.hash):
            raise CliError(WRONG, conflict(request.command.id))
        company = await workers(pool, out, at_once=known is None)
        message_id = await streams.publish_command(redis, body)
        if asking.no_wait:
            return published(request.command.id, str(saga_id), message_id, out)
        began = time.monotonic()
        with timeline(out, [step.name for step in request.saga.steps]) as watch:
            seen = await follow(
                pool,
                saga_id,
                watch,
                timeout=asking.timeout,
                meanwhile=_meanwhile(redis, message_id, request, company),
            )
        return await tell_outcome(seen, redis, time.monotonic() - began, str(saga_id), out)


def published(command_id: str, saga_id: str, message_id: str, out: Output) -> int:
    """Say how to find out later, for those who don't wait."""
    if out.json:
        out.data({"saga_id": saga_id, "command_id": command_id, "message_id": message_id})
    else:
        out.line(f"published {command_id}; see what becomes of it: evosaga status {saga_id}")
    return DONE


def _meanwhile(
    redis: Redis, message_id: str, request: Request, company: Callable[[], Awaitable[None]]
) -> Callable[[Seen], Awaitable[None]]:
    """Called while watching: raises when the command was refused, notes that no worker runs."""
    next_look = 0.0

    async def look(seen: Seen) -> None:
        nonlocal next_look
        if seen.history:
            known = getattr(seen.history[0].event, "command_hash", None)
            if known != request.command.hash:
                raise CliError(WRONG, conflict(request.command.id))
        elif time.monotonic() >= next_look:
            next_look = time.monotonic() + _DEAD_EVERY
            await raise_if_dead(redis, message_id)
        if not seen.over:
            await company()

    return look


def conflict(command_id: str) -> str:
    """The sentence for an id that belongs to another command."""
    return (
        f"the id {command_id} was used before, for another command: nothing was done. "
        "Leave --id out, or give another one"
    )


async def raise_if_dead(redis: Redis, message_id: str) -> None:
    """Raise when our message lies among the dead letters, with the reason it lies there.

    A wish that was understood and refused is answered with that, and its letter taken away.
    """
    from evosaga.events import dead_letters
    from evosaga.orchestrator.commands.control import REFUSALS

    # Both streams take their ids from the same clock, so older letters can't be about ours.
    after = f"{int(message_id.partition('-')[0]) - 1}"
    while True:
        dead, after = await dead_letters.since(redis, after)
        for letter in dead:
            if letter.message_id == message_id:
                if letter.code in REFUSALS:
                    await dead_letters.delete(redis, [letter.id])
                raise refused(letter.code, letter.message)
        if not dead:
            return


def refused(code: str, said: str) -> CliError:
    """The trouble with a command that was understood, and is not obeyed."""
    return CliError(WRONG, f"the command was refused: {said} ({code})")


async def workers(
    pool: Pool, out: Output, *, at_once: bool = True
) -> Callable[[], Awaitable[None]]:
    """Look whether a worker is alive; gives a function that goes on looking, and says so once.

    Not ``at_once`` for a command whose saga may be over already, which needs no worker.
    """
    from evosaga.orchestrator.queries.sagas import living_workers

    next_look, said = 0.0, False

    async def look() -> None:
        nonlocal next_look, said
        if said or time.monotonic() < next_look:
            return
        next_look = time.monotonic() + _WORKERS_EVERY
        if await living_workers(pool) == 0:
            said = True
            out.note(
                "evosaga: no worker is running, so nothing happens until you start one: "
                "`evosaga worker`, or `evosaga dev` for everything. The command is kept."
            )

    if at_once:
        await look()
    return look
