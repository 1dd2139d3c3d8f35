"""Consumer of the command stream ``evosaga:commands``: reads, acknowledges, dead-letters.

Nothing happens under a message but the accepting transaction, and only its commit leads to XACK.
What is not acknowledged comes again. A message that our own code fails on comes again a few times
and is then a dead letter.

FastStream stops a subscriber for good when the group vanishes, as after FLUSHALL, without an
error; ``watch`` starts it again.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import alerts, background, dead_letters, streams, syncpoints
from evosaga.events.commands import BadCommand
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT
from evosaga.events.redis_clients import prefix_of
from evosaga.events.redis_errors import cause
from evosaga.orchestrator.commands.fair_queue import AHEAD, FairQueue
from evosaga.orchestrator.commands.handler import CommandHandler
from evosaga.orchestrator.commands.handover import Handover
from evosaga.orchestrator.commands.keyed_queue import KeyedQueue
from evosaga.orchestrator.commands.results import Conflict, Duplicate, Failed, Refused, RetryLater
from evosaga.orchestrator.commands.stream_intake import StreamIntake, Told, quietly
from evosaga.orchestrator.commands.subscriber import Message, subscribed
from evosaga.orchestrator.engine.engine import Engine

_logger = structlog.get_logger("evosaga.worker")
_RECLAIM_AFTER: Final = 5.0
"""Seconds after which an unacknowledged message is given to another worker."""
_BATCH: Final = 100
"""Commands that are accepted in one transaction."""
_STALE: Final = 1.5
"""Seconds after which what waits here is marked as looked after, or another would reclaim it."""
_PATIENCE: Final = 3
"""Deliveries after which a message that our code fails on is dead-lettered. Our bug, not lost."""
_LONG_PATIENCE: Final = 100
"""Deliveries of one that is about a history which this release can't read: some ten minutes."""


class CommandConsumer:
    """The reader and the reclaimer of one worker."""

    def __init__(
        self,
        redis_url: str,
        redis: Redis,
        handler: CommandHandler,
        engine: Engine,
        patience: float = 30.0,
    ) -> None:
        """``patience``: seconds that a command waits which no living worker knows."""
        worker = engine.worker
        self._redis = redis
        self._handler = handler
        self._engine = engine
        self._intake = StreamIntake(redis, handler, worker, self._settle)
        self._left = KeyedQueue(1)
        self._handover = Handover(redis, handler.pool, handler.registry, worker, patience)
        self._queue = FairQueue()
        self._pump: asyncio.Task[None] | None = None
        self._obeying: asyncio.Future[None] | None = None
        self._kept_at = 0.0
        self._stopping = False
        self._broker, self._subscribers, self._reads = subscribed(
            redis_url, prefix_of(redis), worker, _RECLAIM_AFTER, self._handle
        )

    async def start(self) -> None:
        """Make the group, at 0, before anything reads; then read."""
        await streams.ensure_group(self._redis)
        self._pump = asyncio.create_task(self._hand_on(), name="turns")
        await self._broker.start()

    async def stop(self) -> None:
        """Read no more; what is being accepted, or applied as control, is finished."""
        self._intake.stop()
        self._stopping = True
        self._queue.add(())  # whoever waits for a change looks again
        await self._broker.stop()
        if self._pump is not None:
            await background.end([self._pump])
        if self._obeying is not None:
            await asyncio.wait([self._obeying])
        await self._left.rest()
        await self._intake.close()

    @property
    def healthy(self) -> bool:
        """Whether both subscribers are running, and read."""
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why no commands are read; None when they are."""
        if not all(subscriber.running for subscriber in self._subscribers):
            return "a subscriber has stopped"
        if self._pump is not None and self._pump.done() and not self._stopping:
            return "what was read is not handed on"
        failing = [reads.trouble for reads in self._reads if reads.trouble]
        return f"no command can be read: {failing[0]}" if failing else None

    async def watch(self, every: float = 1.0) -> None:
        """Bring back a group that vanished and subscribers that stopped; cancel it to stop."""

        async def turn() -> float:
            try:
                lost = await streams.ensure_group(self._redis)
                if lost:
                    _logger.warning("consumer_group_missing", stream=streams.COMMANDS)
                for subscriber in self._subscribers:
                    if not subscriber.running:
                        _logger.warning("subscriber had stopped; starting it again")
                        await subscriber.start()
                await self._take_what_was_left()
            except (RedisError, OSError, TimeoutError) as trouble:
                _logger.warning("redis_unavailable", reason=cause(trouble))
            return every

        await background.repeat(turn, first=every)

    async def _take_what_was_left(self) -> None:
        """Obey what other workers did not know and this one does."""
        if not self._engine.free:
            return
        try:
            found = await self._handover.look()
        except Exception as trouble:  # it lies there, and the next look comes in a second
            _logger.warning("handover_retrying", reason=reason(trouble))
            return
        if found:
            await self._left.begin("left", partial(quietly, self._intake.obey, found))

    async def _handle(self, messages: Sequence[Message]) -> None:
        """Take what was read; returns when more may be read.

        While an organization floods the stream, it reads on to what is behind the flood. Without
        room it leaves what is there to other workers.
        """
        await syncpoints.reach("cmd.read")
        self._queue.add(messages)
        while not self._stopping and len(self._queue) >= self._ahead():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STALE):
                    await self._queue.change()
            await self._keep()

    def _ahead(self) -> int:
        """How many commands may wait here while more is read."""
        if not self._engine.free:
            return 1
        return AHEAD if self._queue.flooded else _BATCH

    async def _keep(self) -> None:
        """What waits for its turn here stays this worker's."""
        now = time.monotonic()
        if now - self._kept_at >= _STALE:
            self._kept_at = now
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await streams.keep(self._redis, self._engine.worker, self._queue.ids)

    async def _hand_on(self) -> None:
        """Obey what was read, one command of each organization after another, for ever."""
        while True:
            while not len(self._queue):
                await self._queue.change()
            await self._engine.wait_for_capacity()
            here: list[Message] = []
            later: list[Message] = []
            coming: Counter[UUID] = Counter()
            for whose, message in self._queue.take(_BATCH):
                if whose is not None:
                    coming[whose] += 1
                full = whose is not None and (
                    coming[whose] + self._engine.driving_of(whose) > self._engine.share
                )
                (later if full else here).append(message)
            self._obeying = asyncio.ensure_future(self._obey(here, later))
            await asyncio.shield(self._obeying)
            background.obey_cancel()

    async def _obey(self, here: Sequence[Message], later: Sequence[Message]) -> None:
        """``later``: of organizations that use their share; accepted, and driven in their turn."""
        for messages, drive in ((here, True), (later, False)):
            if messages:
                await quietly(partial(self._intake.obey, drive=drive), messages)

    async def _settle(self, told: Sequence[Told]) -> None:
        """Dead-letter what is bad, acknowledge what is committed, leave what must come again."""
        done: list[Message] = []
        bad: list[tuple[Message, BadCommand]] = []
        for message, said in told:
            result = await self._after_failure(message, said) if isinstance(said, Failed) else said
            if isinstance(result, Refused | Conflict):
                bad.append((message, result.refusal))
            elif not isinstance(result, RetryLater):
                done.append(message)
        bad = await self._ours_to_refuse(bad)
        await self._dead_letter(bad)
        ids = [message.id for message in (*done, *(m for m, _ in bad))]
        await streams.acknowledge(self._redis, ids)
        await syncpoints.reach("ack.post")

    async def _ours_to_refuse(
        self, bad: Sequence[tuple[Message, BadCommand]]
    ) -> list[tuple[Message, BadCommand]]:
        """Without those that a worker of another release may understand."""
        if not bad:
            return []
        try:
            left = await self._handover.leave(bad)
        except TRANSIENT as trouble:
            _logger.warning("dead_letter_retrying", reason=reason(trouble))
            return []
        return [(message, refusal) for message, refusal in bad if message.id not in left]

    async def _after_failure(
        self, message: Message, failed: Failed
    ) -> Duplicate | Refused | RetryLater:
        """The poison policy: a message that our code fails on comes again so many times."""
        error = type(failed.error).__name__
        _logger.error("accepting failed", message=message.id.decode(), error=error)
        # A newer worker may well understand what this one doesn't.
        unreadable = isinstance(failed.error, ValidationError)
        counts = await streams.deliveries(self._redis, [message.id])
        if counts.get(message.id, 1) < (_LONG_PATIENCE if unreadable else _PATIENCE):
            return RetryLater()
        command = failed.command
        try:
            if command is not None and await self._handler.was_obeyed(command):
                return Duplicate(command.saga_id)
        except TRANSIENT:
            return RetryLater()
        return Refused(BadCommand("not_accepted", f"accepting it raised {error}"))

    async def _dead_letter(self, bad: Sequence[tuple[Message, BadCommand]]) -> None:
        if not bad:
            return
        counts = await streams.deliveries(self._redis, [message.id for message, _ in bad])
        await dead_letters.publish(
            self._redis,
            [
                message.letter(refusal.code, refusal.message, counts.get(message.id, 1))
                for message, refusal in bad
            ],
        )
        for message, refusal in bad:
            _logger.warning("dead letter", message=message.id.decode(), code=refusal.code)
        try:
            await alerts.open_now(self._handler.pool, [_alert(bad[-1][1])])
        except Exception as trouble:  # they are found on their stream as well, if later
            _logger.warning("alerts_retrying", reason=reason(trouble))


def _alert(refusal: BadCommand) -> alerts.Condition:
    said = f"a command could not be obeyed: {refusal.code}"
    return alerts.Condition("dead_letters", "dead_letters", said, reason=refusal.code)
