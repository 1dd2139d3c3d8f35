"""Consumer of the command stream ``evosaga:commands``: reads, acknowledges, dead-letters.

Nothing happens under a message but the accepting transaction, and only its commit leads to XACK.
What is not acknowledged comes again. A message that our own code fails on comes again a few times
and is then a dead letter.

FastStream stops a subscriber for good when the group vanishes, as after FLUSHALL, without an
error; ``watch`` starts it again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import alerts, background, dead_letters, streams, syncpoints
from evosaga.events.commands import BadCommand
from evosaga.events.database import TRANSIENT
from evosaga.events.redis_clients import prefix_of
from evosaga.events.redis_errors import cause
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
        self._broker, self._subscribers, self._reads = subscribed(
            redis_url, prefix_of(redis), worker, _RECLAIM_AFTER, self._handle
        )

    async def start(self) -> None:
        """Make the group, at 0, before anything reads; then read."""
        await streams.ensure_group(self._redis)
        await self._broker.start()

    async def stop(self) -> None:
        """Read no more; what is being accepted, or applied as control, is finished."""
        self._intake.stop()
        await self._broker.stop()
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
        failing = [reads.trouble for reads in self._reads if reads.trouble]
        return f"no command can be read: {failing[0]}" if failing else None

    async def watch(self, every: float = 1.0) -> None:
        """Bring back a group that vanished and subscribers that stopped; cancel it to stop."""

        async def turn() -> float:
            try:
                lost = await streams.ensure_group(self._redis)
                if lost:
                    _logger.warning("group was gone", stream=streams.COMMANDS)
                for subscriber in self._subscribers:
                    if not subscriber.running:
                        _logger.warning("subscriber had stopped; starting it again")
                        await subscriber.start()
                await self._take_what_was_left()
            except (RedisError, OSError, TimeoutError) as trouble:
                _logger.warning("redis is away", reason=cause(trouble))
            return every

        await background.repeat(turn, first=every)

    async def _take_what_was_left(self) -> None:
        """Obey what other workers did not know and this one does."""
        if not self._engine.free:
            return
        try:
            found = await self._handover.look()
        except Exception as trouble:  # it lies there, and the next look comes in a second
            _logger.warning("handover_retrying", reason=type(trouble).__name__)
            return
        if found:
            await self._left.begin("left", partial(quietly, self._intake.obey, found))

    async def _handle(self, messages: Sequence[Message]) -> None:
        await self._engine.wait_for_capacity()
        await syncpoints.reach("cmd.read")
        await self._intake.obey(messages)

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
            _logger.warning("dead_letter_retrying", reason=type(trouble).__name__)
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
            _logger.warning("alerts_retrying", reason=type(trouble).__name__)


def _alert(refusal: BadCommand) -> alerts.Condition:
    said = f"a command could not be obeyed: {refusal.code}"
    return alerts.Condition("dead_letters", "dead_letters", said, reason=refusal.code)
