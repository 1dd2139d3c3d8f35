"""The outbox relay: committed events go to the stream ``evosaga:events``, in order.

It publishes by position, from its cursor up to where no append that is under way can add anything
any more (``evosaga.events.append_order``), so it skips nothing. One relay leads
under a lease in Postgres. A leader that dies between publishing and noting it repeats a stretch,
so every event is seen first in its order, and then perhaps again: at least once, deduplicate by id.

Redis keeps how far it was told, in the same script that tells it
(``evosaga.events.relay_position``). What it loses it loses together with that, so a leader sees at
once that Redis was flushed, evicted the stream or came back with an older file, goes back to where
Redis is, and tells the rest again; and one that was paused meanwhile finds Redis elsewhere than it
was, and publishes nothing.

The opposite, a log that lacks what was published (``evosaga.events.log_loss``), is looked for
before anything is published: by a new leader on the stream, and then with every look at the cursor
by whether the log still has the event that was published last. Nothing is published after it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import (
    append_order,
    background,
    log_loss,
    published,
    relay_position,
    streams,
    syncpoints,
)
from evosaga.events.cloudevents import read_batch
from evosaga.events.database import TRANSIENT, Pool, Queryable
from evosaga.events.leader_election import vacant
from evosaga.events.redis_errors import cause
from evosaga.events.relay_position import RelayPosition
from evosaga.events.retention import Retention, trim_bytes

KEEP_SECONDS: Final = 7 * 86400.0
"""How long events stay on the stream unless a setting says otherwise, and how much a Redis that
lost everything is told again."""
KEPT: Final = Retention(KEEP_SECONDS)
_SPARE: Final = 8
"""So large a part of what the stream may have stays free: for the next batch, and for what is on
its way. While it is caught up after an outage, hundreds of thousands of events come in a minute."""
OnRewind: TypeAlias = Callable[[Queryable, datetime], Awaitable[None]]
"""``async (pool, since)``: what else was published from then on is published once more."""


async def nothing_else(_pool: Queryable, _since: datetime) -> None:
    """Of a domain that publishes nothing on ``evosaga:events`` beside its sagas."""


_BATCH: Final = 1000
_LEASE_SECONDS: Final = 5.0
_IDLE_POLL: Final = 0.5
"""Seconds between two looks for what others have committed; our own commits say so."""
_FOLLOW: Final = 1.0
"""Seconds between two looks whether another still leads; our own commits are no reason for one."""
_FOLLOW_LONGEST: Final = 3.0
"""The same once another has led for a while: with a hundred workers that is 33 looks a second."""
_LOOK: Final = 100
"""So many of the newest entries of the stream are looked at."""
_HELD_BACK: Final = 0.01
"""Seconds until the next look when an append under way holds back what was committed; it doubles
with each look that published nothing, up to that of a relay at rest."""
_GATHER: Final = 0.002
"""Seconds that what was committed waits for what comes next: batches commit close together."""
_logger = structlog.get_logger("evosaga.relay")


class Relay:
    """One candidate for leadership; run one in every worker."""

    def __init__(
        self,
        pool: Pool,
        redis: Redis,
        me: str,
        on_rewind: OnRewind = nothing_else,
        *,
        traced: bool = False,
        keep: Retention = KEPT,
    ) -> None:
        """``traced``: events are published with the ``traceparent`` of their saga.

        ``keep``: how much of them the stream keeps.
        """
        self._pool = pool
        self._redis = redis
        self._me = me
        self._on_rewind = on_rewind
        self._traced = traced
        self._keep = keep
        self._told = 0
        self._nudge = asyncio.Event()
        self._leads = False
        self._held_back = False
        self._known: RelayPosition | None = None
        self._guard = log_loss.LogGuard(pool, redis)

    def nudge(self) -> None:
        """Something was committed here: don't wait for the next poll."""
        if self._leads:
            self._nudge.set()

    async def run(self) -> None:
        """Relay for ever; cancel it to stop. Outages of either server are waited out."""
        pause, follow, soon = _IDLE_POLL, _FOLLOW, _HELD_BACK

        async def turn() -> float:
            nonlocal pause, follow, soon
            try:
                before = self._told
                while await self.pump():
                    pass
                stuck = self._held_back and self._told == before
                soon = min(_IDLE_POLL, 2 * soon) if stuck else _HELD_BACK
                pause = soon if self._held_back else _IDLE_POLL
            except (RedisError, *TRANSIENT) as trouble:
                _logger.warning("relay_retrying", reason=cause(trouble))
                pause = min(5.0, pause * 2)
                self._nudge.clear()
            if self._leads:
                follow = _FOLLOW
                return pause
            self._nudge.clear()
            follow = min(_FOLLOW_LONGEST, follow * 1.25)
            return max(pause, follow)

        await background.repeat(turn, nudge=self._nudge, gather=_GATHER)

    async def pump(self) -> bool:
        """Publish one batch if this relay leads; True when there may be more."""
        # Before the cursor: nobody has told anything since, if it still is the note at the end.
        # What was just written needn't be read while there is more to tell: the script compares it.
        known, self._known = self._known, None
        told = known or await relay_position.read(self._redis)
        last = self._guard.last
        lead = await self._pool.fetchrow(_LEAD, streams.EVENTS, self._me, _LEASE_SECONDS, *last)
        self._leads = lead is not None
        if lead is None:
            self._guard.forget()
            return False
        cursor, settled = lead["position"], lead["settled"] or 0
        self._held_back = settled < (lead["newest"] or 0)
        if known and cursor >= settled:
            told = await relay_position.read(self._redis)
        if await self._guard.went_back(lead, told.up_to):
            return False
        if _behind(told, cursor):
            told = await relay_position.read(
                self._redis
            )  # whoever led until a moment ago may have told more
            if not _behind(told, cursor):
                return True
            cursor = await self._go_back(cursor, told)
            told = await relay_position.read(self._redis)
            if told.up_to != cursor:
                return True
        if cursor >= settled:
            return False
        batch = await read_batch(
            self._pool, cursor, settled, _BATCH, traced=self._traced, epoch=lead["epoch"]
        )
        if batch is None:
            return False
        await syncpoints.reach("rel.read")
        try:
            await relay_position.tell(self._redis, batch.events, batch.commands, told, batch.last)
        except relay_position.OutOfStep:
            self._guard.forget()
            return True
        self._known = relay_position.after_telling(self._redis, batch.last)
        self._guard.published(batch.newest, lead["epoch"])
        await syncpoints.reach("rel.xadd")
        await self._pool.execute(_MOVE, streams.EVENTS, self._me, batch.last)
        await syncpoints.reach("rel.mark")
        self._told += 1
        if most := self._keep.most_bytes:
            await trim_bytes(self._redis, streams.EVENTS, most - most // _SPARE)
        return len(batch.events) == _BATCH

    async def _go_back(self, cursor: int, told: RelayPosition) -> int:
        """Redis lost what it was told: the position from which it has to be told again."""
        if told.wrong:
            what = f"the key {relay_position.TOLD} {told.wrong}"
            _logger.warning("relay_position_wrong", what=what, cure="it is written anew")
        has = told.up_to
        if has is None and not told.commands_lost:
            has = await self._newest_on_stream()
        if has is None:
            week_ago = await self._pool.fetchval(_AGO, timedelta(seconds=self._keep.seconds))
            has = await position_at(self._pool, week_ago)
        if has < cursor:
            if (await self._newest_on_stream() or 0) > has:
                _logger.info("republishing_events", after=has, up_to=cursor)
            else:
                _logger.warning("redis_lost_events", after=has, up_to=cursor)
            lost_at = await self._pool.fetchval(_RECORDED_AFTER, has)
            if lost_at is not None:
                await self._on_rewind(self._pool, lost_at)
            await self._pool.execute(_GO_BACK, streams.EVENTS, self._me, has)
        if told.up_to is None or told.commands_lost:
            await relay_position.replace(self._redis, told, min(has, cursor))
        return min(has, cursor)

    async def _newest_on_stream(self) -> int | None:
        """The position of the newest event of ours on a stream that has no note beside it."""
        for event in await published.newest(self._redis, _LOOK):
            at = await self._pool.fetchval(_POSITION, event.saga_id, event.sequence)
            if at is not None:
                return int(at)
        return None

    async def resign(self) -> None:
        """Let another relay lead at once."""
        await self._pool.execute(_RESIGN, streams.EVENTS, self._me)


def _behind(told: RelayPosition, cursor: int) -> bool:
    """Whether Redis has less than the log says that it was told, or can't prove that it has it."""
    return bool(told.wrong or told.commands_lost) or (
        cursor > 0 and (told.up_to is None or told.up_to < cursor)
    )


async def position_at(pool: Pool, at: datetime) -> int:
    """A position below everything that was recorded from ``at`` on, and not far below it.

    Found by halving: times go up with positions but for the length of a transaction.
    """
    at -= timedelta(seconds=60)
    low, high = 0, int(await pool.fetchval(_NEWEST))
    while low < high:
        middle = (low + high) // 2
        recorded_at = await pool.fetchval(_RECORDED_AFTER, middle)
        if recorded_at < at:
            low = middle + 1
        else:
            high = middle
    return low


# The lease is renewed only when half of it is gone: a relay at rest should not write. That the term
# is counted tells the database that this release goes by what is settled.
_LEAD: Final = f"""
WITH mine AS (
    SELECT position, epoch, went_back_at FROM evosaga.relay
    WHERE stream = $1 AND leader = $2 AND lease_until > now() + make_interval(secs => $3 / 2)
      AND lease_until <= now() + make_interval(secs => $3)
), taken AS (
    UPDATE evosaga.relay SET leader = $2, lease_until = now() + make_interval(secs => $3),
        term = term + 1
    WHERE stream = $1 AND (leader = $2 OR {vacant("relay")}) AND NOT EXISTS (SELECT FROM mine)
    RETURNING position, epoch, went_back_at
), log AS MATERIALIZED (
    SELECT max(position) AS newest FROM evosaga.saga_events
)
SELECT held.*, newest, {append_order.SETTLED} AS settled,
    {log_loss.GIVEN} AS given,
    EXISTS (SELECT FROM evosaga.saga_events
            WHERE saga_id = $4 AND sequence = $5 AND recorded_at = $6) AS has_last
FROM (TABLE mine UNION ALL TABLE taken) AS held CROSS JOIN log
"""  # noqa: S608  # constants only
# Nobody waits for this commit to reach the disk: if it is lost the events are told once more.
_MOVE: Final = """
WITH hurried AS (SELECT set_config('synchronous_commit', 'off', true))
UPDATE evosaga.relay SET position = greatest(position, $3)
FROM hurried WHERE stream = $1 AND leader = $2
"""
# Only while it leads: an heir has looked for itself.
_GO_BACK: Final = """
UPDATE evosaga.relay SET position = $3 WHERE stream = $1 AND leader = $2
"""
_POSITION: Final = "SELECT position FROM evosaga.saga_events WHERE saga_id = $1 AND sequence = $2"
_NEWEST: Final = "SELECT coalesce(max(position), 0) FROM evosaga.saga_events"
_RECORDED_AFTER: Final = """
SELECT recorded_at FROM evosaga.saga_events WHERE position > $1 ORDER BY position LIMIT 1
"""
UNRELAYED: Final = f"""greatest(0, coalesce((SELECT max(position) FROM evosaga.saga_events), 0)
    - coalesce((SELECT position FROM evosaga.relay WHERE stream = '{streams.EVENTS}'), 0))"""  # noqa: S608  # constants only
"""How many events are not on the stream yet; at most, since transactions that failed leave gaps."""
_AGO: Final = "SELECT now() - $1::interval"
_RESIGN: Final = """
UPDATE evosaga.relay SET leader = NULL, lease_until = NULL WHERE stream = $1 AND leader = $2
"""
