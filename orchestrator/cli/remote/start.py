"""``start`` and ``sagas`` over HTTP: the server knows the sagas, this machine need not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.cli.integrations import Asking, new_id
from evosaga.orchestrator.cli.remote.session import connect
from evosaga.orchestrator.cli.remote.steering import interruptible, left_alone, watched
from evosaga.orchestrator.cli.start import object_of, refuse_steering, tell_definitions

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.cli.remote.target import Target

_ASKING: Final = Asking()


def start(
    command: str,
    /,
    *,
    data: str = "{}",
    asking: Asking = _ASKING,
    target: Target,
    out: Output,
) -> int:
    """Give a command, and watch the saga that it starts."""
    refuse_steering(command)
    return interruptible(_start(target, command, object_of(data), asking, out), out)


async def _start(
    target: Target, command: str, data: dict[str, Any], asking: Asking, out: Output
) -> int:
    command_id = asking.id or new_id()
    async with connect(target) as client:

        async def result() -> dict[str, Any] | None:
            """What it came to: the same command again is answered with that."""
            ended = await client.post(
                "/sagas", {"command": command, "data": data}, {"wait": "0"}, id=command_id
            )
            found: dict[str, Any] | None = ended.get("result")
            return found

        submitted = await client.command(command, data, id=command_id)
        if asking.no_wait:
            return left_alone(command_id, submitted.saga_id, out)
        saga_id, timeout = submitted.saga_id, asking.timeout
        return await watched(client, saga_id, timeout, "completed", out, result)


def sagas(*, schema: bool = False, target: Target, out: Output) -> int:
    """List the sagas that the server knows."""
    return asyncio.run(_sagas(target, schema, out))


async def _sagas(target: Target, schema: bool, out: Output) -> int:
    async with connect(target) as client:
        found = (await client.get("/definitions"))["sagas"]
    return tell_definitions(found, out, schema=schema)
