"""A Redis client whose commands travel together.

Alone, a command costs the client ten times what it costs in a pipeline, and with many sagas at
once there are always several waiting. So whatever is asked while a round trip is under way goes
out with the next one, as in the event log's group commit; a command that finds nothing under way
goes at once. Each caller gets its own answer or its own error.
"""

import asyncio
from typing import Any

from redis.asyncio import Redis

from evosaga.events.key_prefix import PrefixedPipeline, prefixed, stripped

_MOST = 500


class AutoPipelineRedis(Redis):
    """Like ``Redis``; not for commands that block, which would hold up the others.

    ``prefix`` goes before every name that it sends, see ``evosaga.events.key_prefix``.
    """

    prefix = ""
    _waiting: list[tuple[tuple[Any, ...], dict[str, Any], "asyncio.Future[Any]"]] | None = None
    _sending: "asyncio.Task[None] | None" = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send it with the others. Raises what Redis, or the way to it, has to say."""
        args = prefixed(self.prefix, args)
        if self._waiting is None:
            self._waiting = []
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((args, options, answer))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="redis-bundles")
        told = await answer
        if self.prefix and args[0] == "SCAN":
            return told[0], [stripped(self.prefix, name) for name in told[1]]
        return told

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """Commands that go together, with the prefix as well."""
        if not self.prefix:
            return super().pipeline(transaction, shard_hint)
        pipeline = PrefixedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.prefix = self.prefix
        return pipeline

    async def _send(self) -> None:
        while self._waiting:
            bundle, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            pipeline = super().pipeline(transaction=False)
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
