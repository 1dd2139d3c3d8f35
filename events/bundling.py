"""A Redis client whose commands travel together.

Alone, a command costs the client ten times what it costs in a pipeline, and with many sagas at
once there are always several waiting. So whatever is asked while a round trip is under way goes
out with the next one, as in the event log's group commit; a command that finds nothing under way
goes at once. Each caller gets its own answer or its own error.
"""

import asyncio
from typing import Any

from redis.asyncio import Redis

_MOST = 500


class BundlingRedis(Redis):
    """Like ``Redis``; not for commands that block, which would hold up the others."""

    _waiting: list[tuple[tuple[Any, ...], dict[str, Any], "asyncio.Future[Any]"]] | None = None
    _sending: "asyncio.Task[None] | None" = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send it with the others. Raises what Redis, or the way to it, has to say."""
        if self._waiting is None:
            self._waiting = []
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((args, options, answer))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="redis-bundles")
        return await answer

    async def _send(self) -> None:
        while self._waiting:
            bundle, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            pipeline = self.pipeline(transaction=False)
            for args, options, _ in bundle:
                pipeline.execute_command(*args, **options)
            try:
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
            except BaseException as trouble:
                answers = [trouble] * len(bundle)
            for (_, _, waiting), answer in zip(bundle, answers, strict=True):
                if waiting.done():  # whoever asked was cancelled meanwhile
                    continue
                if isinstance(answer, BaseException):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
