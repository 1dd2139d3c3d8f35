"""Dead letters: commands that could not be processed, with the reason, in their own stream."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from redis.asyncio import Redis

from evosaga.events.streams import COMMANDS, DEAD_COMMANDS, FIELD, as_text

_OTHER: Final = "field:"
_ID: Final = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
_OURS: Final = frozenset({FIELD, b"code", b"message", b"deliveries", b"message_id"})


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be processed: the original bytes and the reason."""

    message_id: str
    data: bytes
    others: Mapping[bytes, bytes]
    """The message's other fields; kept as ``field:<name>``."""
    code: str
    message: str
    deliveries: int


async def publish(redis: Redis, dead: Sequence[DeadLetter]) -> None:
    """Append dead letters. Acknowledge the originals only after this has returned."""
    pipeline = redis.pipeline(transaction=False)
    for letter in dead:
        told: dict[Any, Any] = {
            FIELD: letter.data,
            b"code": letter.code,
            b"message": letter.message,
            b"deliveries": letter.deliveries,
            b"message_id": letter.message_id,
        }
        for name, value in letter.others.items():
            told[_OTHER + name.decode(errors="backslashreplace")] = value
        pipeline.xadd(DEAD_COMMANDS, told)
    await pipeline.execute()


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter as stored: the reason, and the message in ``data`` and ``others``.

    Any client may write to the stream; an entry without a reason is not a dead letter of ours.
    """

    id: str
    message_id: str
    code: str
    message: str
    deliveries: int
    data: bytes
    others: Mapping[str, bytes]

    @property
    def came_at(self) -> datetime:
        """When it became one: Redis's ids begin with the time."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)


async def since(redis: Redis, after: str) -> tuple[list[StoredDeadLetter], str]:
    """The dead letters above a stream id, and the id to continue from."""
    found: Any = await redis.xrange(DEAD_COMMANDS, min=f"({after}", count=1000)
    told = [_letter(*entry) for entry in found]
    return told, told[-1].id if told else after


async def newest(redis: Redis, limit: int) -> tuple[list[StoredDeadLetter], int]:
    """The newest dead letters, newest first, and how many more there are."""
    found: Any = await redis.xrevrange(DEAD_COMMANDS, count=limit)
    more = await redis.xlen(DEAD_COMMANDS) - len(found)
    return [_letter(*entry) for entry in found], max(0, more)


async def page(
    redis: Redis, limit: int, before: str | None = None
) -> tuple[list[StoredDeadLetter], str | None]:
    """A page, newest first, and the id before which the next one begins."""
    last = f"({before}" if before else "+"
    found: Any = await redis.xrevrange(DEAD_COMMANDS, max=last, count=limit + 1)
    told = [_letter(*entry) for entry in found[:limit]]
    return told, told[-1].id if len(found) > limit else None


def _letter(id_: bytes | str, fields: Mapping[bytes, bytes]) -> StoredDeadLetter:
    def said(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="backslashreplace")

    deliveries = said(b"deliveries")
    return StoredDeadLetter(
        as_text(id_),
        said(b"message_id"),
        said(b"code"),
        said(b"message"),
        int(deliveries) if deliveries.isdecimal() else 0,
        fields.get(FIELD, b""),
        {
            name.decode(errors="backslashreplace").removeprefix(_OTHER): value
            for name, value in fields.items()
            if name not in _OURS
        },
    )


async def delete(redis: Redis, letter_ids: Sequence[str]) -> int:
    """Delete dead letters by id; returns how many existed.

    First their messages, which may still be on the stream of commands: acknowledged and without a
    letter, they would look like commands that Postgres forgot (``evosaga recover``).
    """
    if not letter_ids:
        return 0
    await _delete_originals(redis, await some(redis, letter_ids))
    return int(await redis.xdel(DEAD_COMMANDS, *letter_ids))


async def _delete_originals(redis: Redis, letters: Sequence[StoredDeadLetter]) -> None:
    """Any client may write letters: only a message that says the same is deleted."""
    named = [letter for letter in letters if _ID.fullmatch(letter.message_id)]
    if not named:
        return
    pipeline = redis.pipeline(transaction=False)
    for letter in named:
        pipeline.xrange(COMMANDS, min=letter.message_id, max=letter.message_id)
    found: Any = await pipeline.execute()
    ids = [
        letter.message_id
        for letter, entries in zip(named, found, strict=True)
        if any(fields.get(FIELD, b"") == letter.data for _, fields in entries)
    ]
    if ids:
        await redis.xdel(COMMANDS, *ids)


async def some(redis: Redis, letter_ids: Sequence[str]) -> list[StoredDeadLetter]:
    """The dead letters of these ids, as far as they exist; what is no id is left out."""
    ids = [id_ for id_ in letter_ids if _ID.fullmatch(id_)]
    pipeline = redis.pipeline(transaction=False)
    for id_ in ids:
        pipeline.xrange(DEAD_COMMANDS, min=id_, max=id_)
    found: Any = await pipeline.execute() if ids else []
    return [_letter(*entry) for entries in found for entry in entries]


async def send_again(redis: Redis, letters: Sequence[StoredDeadLetter]) -> None:
    """Put the messages back on the stream of commands as they were sent, then delete the letters.

    In this order, so that nothing is lost between the two; a command's id makes a second one
    harmless. Not in one transaction, since in a cluster they are on different nodes.
    """
    if not letters:
        return
    pipeline = redis.pipeline(transaction=True)
    for letter in letters:
        fields: dict[Any, Any] = {FIELD: letter.data} if letter.data else {}
        pipeline.xadd(COMMANDS, fields | dict(letter.others) or {FIELD: b""})
    await pipeline.execute()
    await delete(redis, [letter.id for letter in letters])
