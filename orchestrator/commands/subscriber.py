"""FastStream as far as we use it: whole batches, raw bytes, acknowledged by hand.

Two subscribers share the group: a *reader* of new messages and a *reclaimer* of those whose reader
died before it acknowledged them (FastStream's subscribers do one or the other).
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from faststream import AckPolicy, Context
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser import BinaryMessageFormatV1, MessageFormat
from redis.exceptions import RedisError, ResponseError

from evosaga.events import streams
from evosaga.events.commands import BadCommand
from evosaga.events.dead_letters import DeadLetter
from evosaga.events.redis_errors import cause
from evosaga.orchestrator.commands.brokers import broker_of

_BATCH: Final = 100
_BLOCK: Final = 3000
"""Milliseconds that a read waits for messages, which end it at once; below the client's timeout."""
_LOOK: Final = 1500
"""Milliseconds between two looks for what was left behind."""
_FAILING: Final = 5.0
"""Seconds that reads may fail, as during a failover, before that is worth an alarm."""
_HANGS: Final = 15.0
"""Seconds after which a read hangs that should have ended after ``_BLOCK`` or a time-out."""


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
class Message:
    """An entry of the stream of commands."""

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


Handle = Callable[[Sequence[Message]], Awaitable[None]]
"""What is done with a batch; what it leaves unacknowledged comes again."""


@dataclass(slots=True)
class StreamSubscription:
    """How the reads of one subscriber go. Times are monotonic seconds."""

    well_at: float | None = None
    begun_at: float | None = None
    failed: str | None = None
    """Why the last one failed; None when it did not."""

    @property
    def trouble(self) -> str | None:
        """Why nothing is read; None when it is, or was a moment ago."""
        now = time.monotonic()
        if self.failed and (self.well_at is None or now - self.well_at > _FAILING):
            return self.failed
        if self.begun_at is not None and now - self.begun_at > _HANGS:
            return "a read hangs"
        return None


def subscribed(
    redis_url: str, prefix: str, worker: str, reclaim_after: float, handle: Handle
) -> tuple[RedisBroker, list[Any], list[StreamSubscription]]:
    """A broker with the reader and the reclaimer of one worker, not yet started.

    ``reclaim_after``: seconds after which an unacknowledged message is taken over.
    """
    common: dict[str, Any] = {
        "logger": logging.getLogger("evosaga.faststream"),
        "message_format": _Raw,
        "graceful_timeout": 10.0,
    }
    broker = broker_of(redis_url, common)

    async def handle_raw(message: Annotated[Any, Context("message")]) -> None:
        raw = message.raw_message
        await handle(
            [
                Message(id_, fields)
                for id_, fields in zip(raw["message_ids"], raw["data"], strict=True)
                if fields  # XAUTOCLAIM on old servers hands out entries that were deleted
            ]
        )

    subscribers = [
        broker.subscriber(
            stream=StreamSub(
                prefix + streams.COMMANDS,
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
        for polling, idle in ((_BLOCK, None), (_LOOK, int(reclaim_after * 1000)))
    ]
    reads = [StreamSubscription() for _ in subscribers]
    for subscriber, how in zip(subscribers, reads, strict=True):
        subscriber(handle_raw)
        _calm(subscriber, how)
    return broker, subscribers, reads


def _calm(subscriber: Any, reads: StreamSubscription) -> None:
    """Note how reads go, and make FastStream pause after an error that Redis answers with.

    It pauses after a broken connection. Left alone, it starts reading again at once, thousands of
    times a second, for as long as Redis is read-only, say. NOGROUP it must see: it stops then, and
    ``watch`` brings the group back.
    """
    get = subscriber._get_msgs

    async def get_messages(read: Callable[[str], Awaitable[Any]]) -> None:
        async def noted(last_id: str) -> Any:
            reads.begun_at = time.monotonic()
            try:
                answer = await read(last_id)
            except Exception as error:
                reads.failed = cause(error)
                raise
            finally:
                reads.begun_at = None
            reads.well_at, reads.failed = time.monotonic(), None
            return answer

        try:
            await get(noted)
        except ResponseError as error:
            if "NOGROUP" in str(error):
                raise
            raise RedisError(f"Redis refused a read: {cause(error)}") from error

    subscriber._get_msgs = get_messages
