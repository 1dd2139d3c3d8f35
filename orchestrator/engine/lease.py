"""A worker's sign of life, and its right to act.

A worker that stops beating is taken for dead after ``ttl`` seconds on Postgres's clock, and its
sagas go to others; one that is slow asks for more (``evosaga.orchestrator.engine.overload``). One
that was merely paused must not act on what it believed before the pause: ``check`` is asked
immediately before every effect and counts from *before* the last successful heartbeat, on this
machine's monotonic clock, with a margin. What slips through all the same is stopped by the sequence
of the log, which no zombie can get past.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Final

import structlog

from evosaga.events import append_order, background
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool
from evosaga.orchestrator.engine.overload import LoadMeter

_logger = structlog.get_logger("evosaga.lease")
_MARGIN: Final = 0.1
"""Share of the lease that is given up to be on the safe side."""


_bound_epoch: ContextVar[int | None] = ContextVar("evosaga_lease_epoch", default=None)


class LeaseLost(Exception):
    """This worker may no longer act: it was paused, or cut off from Postgres, for too long.

    No bug; the saga goes on elsewhere.
    """


class Lease:
    """The lease of one worker. Times are in seconds."""

    def __init__(
        self,
        pool: Pool,
        worker: str,
        *,
        ttl: float = 2.5,
        beat: float = 0.5,
        knows: Sequence[str] = (),
    ) -> None:
        """``knows``: the definitions this worker has, as ``name/version``, for people to see."""
        self.worker = worker
        self._knows = list(knows)
        self.ttl = ttl
        self.pace = LoadMeter(ttl, beat)
        self.on_beat: Callable[[], None] = lambda: None
        """Called after each beat: how the worker keeps up is known anew."""
        self._pool = pool
        self._valid_until = 0.0
        self._epoch = 0
        self._steady_since = float("inf")
        self._beaten = asyncio.Event()

    def bind_lease(self) -> None:
        """Bind what the current task does from now on to the lease as it is now.

        To be called before an intent is committed. A lease that was lost and regained gives no
        right to act on that intent: the saga may be another worker's.
        """
        _bound_epoch.set(self._epoch)

    def check(self) -> None:
        """Raise ``LeaseLost`` unless this worker may act right now."""
        if time.monotonic() >= self._valid_until or _bound_epoch.get() not in (None, self._epoch):
            raise LeaseLost(f"worker {self.worker} has not been seen for a while")

    @property
    def held(self) -> bool:
        """Whether this worker may act right now."""
        return time.monotonic() < self._valid_until

    async def regained(self) -> None:
        """Wait until this worker may act again."""
        while time.monotonic() >= self._valid_until:
            await self._beaten.wait()

    @property
    def steady(self) -> bool:
        """Whether the others' silence means something.

        After an outage of Postgres all leases are over at once; the first to come
        back must give the others time: half a lease, in which a living worker beats more than once.
        """
        now = time.monotonic()
        return now < self._valid_until and now - self._steady_since > self.ttl / 2

    async def beat(self) -> None:
        """One heartbeat. Raises what the database raises."""
        before, ttl = time.monotonic(), self.pace.ttl
        features = [append_order.FEATURE]
        await self._pool.execute(_BEAT, self.worker, ttl, self._knows, features, timeout=ttl)
        self.ttl = ttl
        if before >= self._valid_until:
            self._steady_since = before
            self._epoch += 1
        self._valid_until = before + self.ttl * (1 - _MARGIN)
        self._beaten.set()
        self._beaten.clear()

    async def run(self) -> None:
        """Beat for ever; cancel it to stop."""
        due, slow = time.monotonic(), False

        async def turn() -> float:
            nonlocal due, slow
            try:
                await self.beat()
            except TRANSIENT as trouble:
                _logger.warning("heartbeat_retrying", reason=reason(trouble))
            else:
                self.pace.note(time.monotonic() - due)
                self.on_beat()
            if slow is not self.pace.pressed:
                slow = not slow
                say = _logger.warning if slow else _logger.info
                said = "does not keep up" if slow else "keeps up again"
                say(said, late=round(self.pace.late, 1), lease=round(self.pace.ttl, 1))
            due = time.monotonic() + self.pace.beat
            return self.pace.beat

        await background.repeat(turn)

    async def release(self) -> None:
        """Leave at once: what this worker still owns may be taken over without waiting."""
        self._valid_until = 0.0
        await self._pool.execute("DELETE FROM evosaga.workers WHERE worker_id = $1", self.worker)


_BEAT: Final = """
WITH gone AS (
    DELETE FROM evosaga.workers WHERE lease_until < now() - interval '1 hour'
)
INSERT INTO evosaga.workers (worker_id, lease_until, knows, lease_seconds, features)
VALUES ($1, now() + make_interval(secs => $2), $3, $2, $4)
ON CONFLICT (worker_id) DO UPDATE
SET lease_until = excluded.lease_until, lease_seconds = excluded.lease_seconds
"""
