"""Commands from the stream ``evosaga:commands``, read with FastStream and accepted in batches.

Two subscribers share the group: a *reader* of new messages and a *reclaimer* of those whose
reader died before it acknowledged them (FastStream's subscribers do one or the other). Nothing
happens under a message but the accepting transaction, and only its commit leads to XACK.

FastStream stops a subscriber for good when the group vanishes, as after FLUSHALL, and nobody
would notice; ``watch`` does.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import structlog
from faststream import AckPolicy, Context
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser import BinaryMessageFormatV1, MessageFormat
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from events import streams
from events.commands import BadCommand, Command, read_command
from events.database import TRANSIENT, Pool
from events.log import EventLog
from events.streams import DeadLetter
from orchestrator.accept import Accepted, Request, accept, understand
from orchestrator.engine import Engine
from orchestrator.steer import STEERING, Again, steer
from sagas.world import World

_logger = structlog.get_logger("evosaga.worker")
_BATCH: Final = 100
_RECLAIM_AFTER: Final = 5.0
"""Seconds after which a message that nobody acknowledged is given to another worker."""
_PATIENCE: Final = 3
"""Deliveries after which a message that we stumble over is dead-lettered. Our bug, not lost."""


class _Raw(MessageFormat):
    """Leaves messages as they are: any language may publish, so nothing is presumed of them.

    Headers are ignored, ``reply_to`` among them: a publisher can't make us write elsewhere.
    """

    @classmethod
    async def encode(cls, **_: Any) -> bytes:
        raise NotImplementedError("the worker publishes with plain XADD")

    @classmethod
    def parse(cls, data: Any) -> tuple[bytes, dict[str, Any]]:
        return b"null", {}


@dataclass(frozen=True, slots=True)
class _Message:
    id: bytes
    fields: dict[bytes, bytes]

    def body(self) -> bytes:
        """The command's bytes. Raises ``BadCommand`` when the message has none."""
        if streams.FIELD in self.fields:
            return self.fields[streams.FIELD]
        if streams.FASTSTREAM_FIELD in self.fields:
            return BinaryMessageFormatV1.parse(self.fields[streams.FASTSTREAM_FIELD])[0]
        raise BadCommand("no_data_field", "the command must be in the message's field `data`")

    def letter(self, code: str, sentence: str, deliveries: int) -> DeadLetter:
        """What is kept of a message that can't be obeyed: every byte of it."""
        others = dict(self.fields)
        data = others.pop(streams.FIELD, None)
        if data is None:
            data = others.pop(streams.FASTSTREAM_FIELD, b"")
        return DeadLetter(self.id.decode(), data, others, code, sentence, deliveries)


class CommandReader:
    """The reader and the reclaimer of one worker."""

    def __init__(
        self,
        redis_url: str,
        redis: Redis,
        pool: Pool,
        log: EventLog,
        engine: Engine,
        world: World,
        worker: str,
    ) -> None:
        self._redis = redis
        self._pool = pool
        self._log = log
        self._engine = engine
        self._world = world
        self._worker = worker
        quiet = logging.getLogger("evosaga.faststream")
        self._broker = RedisBroker(
            redis_url,
            logger=quiet,
            message_format=_Raw,
            graceful_timeout=10.0,
            socket_timeout=5.0,
            socket_connect_timeout=5.0,
        )
        self._subscribers = [
            self._broker.subscriber(
                stream=StreamSub(
                    streams.COMMANDS,
                    group=streams.GROUP,
                    consumer=worker,
                    batch=True,
                    max_records=_BATCH,
                    polling_interval=polling,
                    min_idle_time=idle,
                ),
                ack_policy=AckPolicy.MANUAL,
                no_reply=True,
            )
            for polling, idle in ((500, None), (1000, int(_RECLAIM_AFTER * 1000)))
        ]
        for subscriber in self._subscribers:
            subscriber(self._handle)
            _calm(subscriber)

    async def start(self) -> None:
        """Make the group, at 0, before anything reads; then read."""
        await streams.ensure_group(self._redis)
        await self._broker.start()

    async def stop(self) -> None:
        """Read no more; what is being accepted is finished."""
        await self._broker.stop()

    @property
    def healthy(self) -> bool:
        """Whether both subscribers are running."""
        return all(subscriber.running for subscriber in self._subscribers)

    async def watch(self, every: float = 1.0) -> None:
        """Bring back a group that vanished and subscribers that stopped; cancel it to stop."""
        while True:
            await asyncio.sleep(every)
            try:
                lost = await streams.ensure_group(self._redis)
                if lost:
                    _logger.warning("group was gone", stream=streams.COMMANDS)
                for subscriber in self._subscribers:
                    if not subscriber.running:
                        _logger.warning("subscriber had stopped; starting it again")
                        await subscriber.start()
            except (RedisError, OSError, TimeoutError) as trouble:
                _logger.warning("redis is away", reason=type(trouble).__name__)

    async def _handle(self, message: Annotated[Any, Context("message")]) -> None:
        """One batch. What is not acknowledged at the end comes again."""
        raw = message.raw_message
        messages = [
            _Message(id_, fields)
            for id_, fields in zip(raw["message_ids"], raw["data"], strict=True)
            if fields  # XAUTOCLAIM on old servers hands out entries that were deleted
        ]
        await self._engine.room()
        await self._obey(messages)

    async def _obey(self, messages: Sequence[_Message]) -> None:
        bad: list[tuple[_Message, BadCommand]] = []
        requests: list[tuple[_Message, Request]] = []
        done: list[_Message] = []

        async def accept_collected() -> None:
            for message, answer in await self._accept(requests):
                if isinstance(answer, BadCommand):
                    bad.append((message, answer))
                elif answer is not None:
                    done.append(message)
            requests.clear()

        for message in messages:
            try:
                command = read_command(message.body())
                if command.type in STEERING:
                    await accept_collected()  # it may be about what came just before it
                    request = await self._steer(command)
                else:
                    request = understand(self._engine.catalogue, command)
                if request is None:
                    done.append(message)
                else:
                    requests.append((message, request))
            except BadCommand as refusal:
                bad.append((message, refusal))
            except TRANSIENT:
                raise
            except Exception as stumble:
                if (verdict := await self._stumbled(message, stumble)) is not None:
                    bad.append((message, verdict))
        await accept_collected()
        await self._bury(bad)
        ids = [message.id for message in (*done, *(m for m, _ in bad))]
        await streams.acknowledge(self._redis, ids)

    async def _steer(self, command: Command) -> Request | None:
        """Replay or cancel; a replay that starts anew is a request like any other."""
        answer = await steer(self._log, self._engine.catalogue, command, self._engine)
        if isinstance(answer, Again):
            return understand(self._engine.catalogue, answer.command)
        return None

    async def _accept(
        self, requests: Sequence[tuple[_Message, Request]]
    ) -> list[tuple[_Message, Accepted | BadCommand | None]]:
        """What became of each: accepted, bad, or None for what must come again."""
        if not requests:
            return []
        try:
            answers = await self._commit([request for _, request in requests])
        except Exception as stumble:
            if len(requests) > 1:  # find the one, and let its neighbours through
                return [one for request in requests for one in await self._accept([request])]
            return [(requests[0][0], await self._stumbled(requests[0][0], stumble))]
        results: list[tuple[_Message, Accepted | BadCommand | None]] = []
        for (message, request), answer in zip(requests, answers, strict=True):
            if answer.kind == "new" and answer.state is not None:
                correlation = request.command.correlation_id or str(answer.saga_id)
                self._engine.start(answer.saga_id, answer.state, correlation)
            if answer.kind == "conflicting":
                sentence = f"the id {request.command.id} was used for another command"
                results.append((message, BadCommand("conflicting_duplicate", sentence)))
            else:
                results.append((message, answer))
        return results

    async def _commit(self, requests: Sequence[Request]) -> list[Accepted]:
        """Accept, waiting while Postgres is away: no acknowledgement without a commit."""
        pause, doubtful = 0.05, False
        while True:
            try:
                self._engine.pin()
                answers = await accept(self._pool, self._world, self._worker, requests)
                if doubtful:
                    await self._take_up([a.saga_id for a in answers if a.kind == "known"])
                return answers
            except TRANSIENT as trouble:
                doubtful = True
                _logger.warning("accepting waits", reason=type(trouble).__name__)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    async def _take_up(self, saga_ids: Sequence[UUID]) -> None:
        """Drive what an earlier try committed before its connection broke: nobody else will."""
        mine = await self._pool.fetch(_MINE, saga_ids, self._worker)
        if mine:
            histories = await self._log.read_many([row["saga_id"] for row in mine])
            self._engine.take_over(histories, mine[0]["now"])

    async def _stumbled(self, message: _Message, stumble: Exception) -> BadCommand | None:
        counts = await streams.deliveries(self._redis, [message.id])
        _logger.error("accepting failed", message=message.id.decode(), error=type(stumble).__name__)
        if counts.get(message.id, 1) < _PATIENCE:
            return None
        return BadCommand("not_accepted", f"accepting it raised {type(stumble).__name__}")

    async def _bury(self, bad: Sequence[tuple[_Message, BadCommand]]) -> None:
        if not bad:
            return
        counts = await streams.deliveries(self._redis, [message.id for message, _ in bad])
        await streams.bury(
            self._redis,
            [
                message.letter(refusal.code, refusal.message, counts.get(message.id, 1))
                for message, refusal in bad
            ],
        )
        for message, refusal in bad:
            _logger.warning("dead letter", message=message.id.decode(), code=refusal.code)


def _calm(subscriber: Any) -> None:
    """Make FastStream pause after an error that Redis answers with, as after a broken connection.

    Left alone, it starts reading again at once, thousands of times a second, for as long as Redis
    is read-only, say. NOGROUP it must see: it stops then, and ``watch`` brings the group back.
    """
    read = subscriber._get_msgs

    async def get_messages(*args: Any) -> None:
        try:
            await read(*args)
        except ResponseError as error:
            if "NOGROUP" in str(error):
                raise
            raise RedisError(f"Redis refused a read: {type(error).__name__}") from error

    subscriber._get_msgs = get_messages


_MINE: Final = """
SELECT saga_id, now() AS now FROM evosaga.sagas
WHERE saga_id = ANY($1) AND owner = $2 AND status IN ('running', 'compensating')
"""
