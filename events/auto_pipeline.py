"""A Redis client that pipelines automatically: what is asked during a round trip shares the next.

Alone, a command costs the client ten times what it costs in a pipeline, and with many sagas at
once there are always several waiting. Each caller gets its own answer or its own error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from evosaga.events.batching import Batcher
from evosaga.events.key_prefix import PrefixedPipeline, prefixed, stripped

_MOST = 500


class AutoPipelineRedis(Redis):
    """Like ``Redis``; not for commands that block, which would hold up the others.

    ``prefix`` goes before every name that it sends, see ``evosaga.events.key_prefix``.
    """

    prefix = ""
    _batcher: Batcher[tuple[Sequence[Any], Mapping[str, Any]], Any] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send it with the others. Raises what Redis, or the way to it, has to say."""
        args = prefixed(self.prefix, args)
        if self._batcher is None:
            self._batcher = Batcher("redis-pipeline", _MOST)
        told = await self._batcher.send((args, options), self._send)
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

    async def _send(self, commands: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        pipeline = super().pipeline(transaction=False)
        for args, options in commands:
            pipeline.execute_command(*args, **options)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers
