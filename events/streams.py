"""Redis streams: names, groups, publishing.

Only ``letters``, ``note`` and ``trimming`` know their commands beside it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from evosaga.events.redis_clients import connect as connect
from evosaga.events.slots import same_slot

COMMANDS: Final = "evosaga:commands"
DEAD_COMMANDS: Final = "evosaga:commands:dead"
EVENTS: Final = "evosaga:events"
GROUP: Final = "orchestrator"

FIELD: Final = b"data"
FASTSTREAM_FIELD: Final = b"__data__"
"""Where FastStream's own publisher puts its envelope."""


async def ensure_group(redis: "Redis") -> bool:
    """Create the workers' group at 0, so that what was published before is processed.

    True when it had to be made, as at the very first start or after Redis lost its data.
    """
    try:
        await redis.xgroup_create(COMMANDS, GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" in str(error):
            return False
        raise
    return True


async def publish_command(redis: "Redis", command: Mapping[str, Any]) -> str:
    """XADD a command; its stream id."""
    body = json.dumps(command, ensure_ascii=False, separators=(",", ":"))
    return as_text(await redis.xadd(COMMANDS, {FIELD: body.encode()}))


async def publish_commands(redis: "Redis", commands: Sequence[Mapping[str, Any]]) -> list[str]:
    """XADD several commands in one go; their stream ids, in order."""
    pipeline = redis.pipeline(transaction=True)
    for command in commands:
        body = json.dumps(command, ensure_ascii=False, separators=(",", ":"))
        pipeline.xadd(COMMANDS, {FIELD: body.encode()})
    return [as_text(id_) for id_ in await pipeline.execute()]


async def publish_events(
    redis: "Redis", events: Sequence[bytes], commands: Sequence[bytes] = ()
) -> None:
    """XADD events in order, and what they command; all or, when this raises, perhaps nothing.

    In a transaction, since a Redis that is short of memory refuses one XADD of a pipeline and
    takes the next, and then an event would be seen before the one ahead of it. In a cluster the
    streams are on different nodes, and the commands go first: a second one is harmless.
    """
    told = [[(COMMANDS, one) for one in commands], [(EVENTS, one) for one in events]]
    if same_slot(redis, COMMANDS, EVENTS):
        told = [told[1] + told[0]]
    for together in told:
        pipeline = redis.pipeline(transaction=True)
        for stream, one in together:
            pipeline.xadd(stream, {FIELD: one})
        await pipeline.execute()


async def acknowledge(redis: "Redis", message_ids: Sequence[bytes]) -> None:
    """XACK commands whose fate is committed."""
    if message_ids:
        await redis.xack(COMMANDS, GROUP, *message_ids)


async def deliveries(redis: "Redis", message_ids: Sequence[bytes]) -> dict[bytes, int]:
    """How often each pending message was handed out."""
    if not message_ids:
        return {}
    pipeline = redis.pipeline(transaction=False)
    for message_id in message_ids:
        pipeline.xpending_range(COMMANDS, GROUP, min=message_id, max=message_id, count=1)
    found = zip(message_ids, await pipeline.execute(), strict=True)
    return {message_id: int(rows[0]["times_delivered"]) for message_id, rows in found if rows}


async def pending(
    redis: "Redis", newest: bytes | str = "+", consumer: str | None = None
) -> dict[bytes, int]:
    """Commands that were handed out, to all or to this consumer, and are not acknowledged.

    By id, in order, up to that one, with the milliseconds since.
    """
    found: dict[bytes, int] = {}
    begin: bytes | str = "-"
    while True:
        rows: Any = await redis.xpending_range(
            COMMANDS, GROUP, min=begin, max=newest, count=_PAGE, consumername=consumer
        )
        found |= {row["message_id"]: row["time_since_delivered"] for row in rows}
        if len(rows) < _PAGE:
            return found
        begin = b"(" + rows[-1]["message_id"]


async def fields_of(
    redis: "Redis", message_ids: Sequence[bytes]
) -> dict[bytes, dict[bytes, bytes]]:
    """What the commands of these ids hold; one that was deleted from the stream is left out."""
    if not message_ids:
        return {}
    pipeline = redis.pipeline(transaction=False)
    for message_id in message_ids:
        pipeline.xrange(COMMANDS, min=message_id, max=message_id)
    return {id_: fields for rows in await pipeline.execute() for id_, fields in rows}


async def keep(redis: "Redis", consumer: str, message_ids: Sequence[bytes]) -> None:
    """Make these commands this consumer's, as if they had just been handed to it.

    It does not count as a delivery. What was acknowledged stays so.
    """
    if message_ids:
        await redis.xclaim(COMMANDS, GROUP, consumer, 0, list(message_ids), justid=True)


async def hand_over(
    redis: "Redis", giver: str, taker: str, message_ids: Sequence[bytes]
) -> set[bytes]:
    """Make these commands the taker's, as far as they are still the giver's; which of them were.

    Look and claim in one script, so that one taker gets each.
    """
    if not message_ids:
        return set()
    return set(await redis.eval(_HAND_OVER, 1, COMMANDS, GROUP, giver, taker, *message_ids))


_PAGE: Final = 1000
_HAND_OVER: Final = """
local taken = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, id, 'JUSTID')
    taken[#taken + 1] = id
  end
end
return taken
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the workers are behind. ``lag`` is None where Redis itself does not know."""

    length: int
    lag: int | None
    pending: int
    consumers: int
    dead: int


async def backlog(redis: "Redis") -> Backlog | None:
    """The command stream's state, None before its group exists."""
    try:
        groups = await redis.xinfo_groups(COMMANDS)
    except ResponseError:
        return None
    for group in groups:
        if as_text(group["name"]) == GROUP:
            return Backlog(
                length=await redis.xlen(COMMANDS),
                lag=group.get("lag"),
                pending=group["pending"],
                consumers=group["consumers"],
                dead=await redis.xlen(DEAD_COMMANDS),
            )
    return None


async def oldest_waiting(redis: "Redis") -> float | None:
    """Age in seconds of the oldest command that is unread or being accepted; None: there is none.

    By this machine's clock, beside Redis's, which gave the command its id.
    """
    found = [
        group for group in await redis.xinfo_groups(COMMANDS) if as_text(group["name"]) == GROUP
    ]
    if not found:
        return None
    last = as_text(found[0]["last-delivered-id"])
    unread: Any = await redis.xrange(COMMANDS, min=f"({last}", count=1)
    ids = [as_text(unread[0][0])] if unread else []
    if found[0]["pending"]:
        summary: Any = await redis.xpending(COMMANDS, GROUP)
        ids += [as_text(summary["min"])] if summary["min"] else []
    if not ids:
        return None
    oldest = min(int(id_.partition("-")[0]) for id_ in ids)
    return max(0.0, time.time() - oldest / 1000)


async def drop_idle_consumers(redis: "Redis", idle_seconds: float) -> None:
    """Forget consumers that own nothing and have been silent: every restart makes new ones."""
    for consumer in await redis.xinfo_consumers(COMMANDS, GROUP):
        if consumer["idle"] > idle_seconds * 1000 and consumer["pending"] == 0:
            await redis.eval(_DROP_CONSUMER, 1, COMMANDS, GROUP, consumer["name"])


_DROP_CONSUMER: Final = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local found = {}
  for i = 1, #consumer, 2 do found[consumer[i]] = consumer[i + 1] end
  if found.name == ARGV[2] and found.pending == 0 then
    return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  end
end
"""
"""Deleting a consumer that owns pending messages would lose them, so look and act at once."""


def as_text(value: bytes | str) -> str:
    """What Redis says as text, whether or not the client has decoded it."""
    return value.decode() if isinstance(value, bytes) else value
