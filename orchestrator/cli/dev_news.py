"""What happens while ``evosaga dev`` runs: a line for each saga that begins, fails or ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.orchestrator.cli.output import Output

_SAID: Final = {
    "saga.started": "started",
    "saga.rejected": "rejected, nothing was touched",
    "step.failed": "step failed",
    "compensation.began": "rollback started",
    "compensation.failed": "rollback step failed",
    "saga.completed": "completed",
    "saga.compensated": "rolled back, nothing is left behind",
    "saga.failed": "parked, needs attention",
    "saga.resumed": "resumed",
    "saga.cancel_requested": "cancel requested",
}
_BLOCK: Final = 1000


@contextlib.asynccontextmanager
async def told(redis_url: str, prefix: str, out: Output) -> AsyncIterator[None]:
    """Print the news from now on, until the end of the block."""
    from evosaga.events import streams

    async with contextlib.AsyncExitStack() as stack:
        redis = streams.connect(redis_url, prefix)
        stack.push_async_callback(redis.aclose)
        task = asyncio.create_task(_tell(redis, out))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _tell(redis: Redis, out: Output) -> None:
    from redis.exceptions import RedisError

    from evosaga.events import streams

    last, names = "$", dict[str, str]()
    while True:
        try:
            found: Any = await redis.xread({streams.EVENTS: last}, block=_BLOCK, count=100)
        except (RedisError, OSError):
            await asyncio.sleep(_BLOCK / 1000)  # it may be restarting
            continue
        for _, entries in found or ():
            for last, fields in entries:  # noqa: B007  # the cursor of the next read
                if line := _line(json.loads(fields[b"data"]), names):
                    out.line(line)


def _line(event: dict[str, Any], names: dict[str, str]) -> str | None:
    """``names`` are those of the instances by saga, which only a saga's start tells."""
    from evosaga.orchestrator.cli.output import printable

    data, saga = event["data"], event["subject"]
    if name := data.get("instance_name"):
        names[saga] = name
    said = _SAID.get(event["type"])
    if said is None:
        return None
    about = names.get(saga, saga)
    if event["type"] in ("saga.completed", "saga.compensated", "saga.rejected"):
        names.pop(saga, None)
    at = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
    where = f" at {data['step']}" if data.get("step") else ""
    why = f": {data['message']}" if data.get("message") else ""
    return printable(f"{at}  {data['saga']}  {about}  {said}{where}{why}")
