"""FastStream as far as we use it: whole batches, raw bytes, acknowledged by hand.

Two subscribers share the group: a *reader* of new messages and a *reclaimer* of those whose reader
died before it acknowledged them (FastStream's subscribers do one or the other).
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from faststream import AckPolicy, Context
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.parser import BinaryMessageFormatV1, MessageFormat
from redis.exceptions import RedisError, ResponseError

from events import streams
from events.commands import BadCommand
from events.letters import DeadLetter

_BATCH: Final = 100
_BLOCK: Final = 3000
"""Milliseconds that a read waits for messages, which end it at once; below the client's timeout."""
_LOOK: Final = 1500
"""Milliseconds between two looks for what was left behind."""


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


def subscribed(
    redis_url: str, worker: str, reclaim_after: float, handle: Handle
) -> tuple[RedisBroker, list[Any]]:
    """A broker with the reader and the reclaimer of one worker, not yet started.

    ``reclaim_after``: seconds after which a message that nobody acknowledged is taken over.
    """
    broker = RedisBroker(
        redis_url,
        logger=logging.getLogger("evosaga.faststream"),
        message_format=_Raw,
        graceful_timeout=10.0,
        socket_timeout=5.0,
        socket_connect_timeout=5.0,
    )

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
        for polling, idle in ((_BLOCK, None), (_LOOK, int(reclaim_after * 1000)))
    ]
    for subscriber in subscribers:
        subscriber(handle_raw)
        _calm(subscriber)
    return broker, subscribers


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
