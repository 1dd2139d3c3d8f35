"""Bulkhead and circuit breaker for one server.

The bulkhead limits the calls that are out at once. Failures in a row open the breaker: no call is
let through for a pause, then one, and one more for each call that goes well, until enough have. A
failure before that opens it again, for twice as long.

    closed ── failures in a row ──► open ── a pause ──► half-open ── went well ──► closed
                                     ▲                      │
                                     └────── a failure ─────┘

A caller without a permit has sent nothing and gets a time to come back, spread at random.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

import structlog

_logger = structlog.get_logger("evosaga.breaker")

FAILURES: Final = 5
"""So many in a row open it."""
PROVEN: Final = 16
"""Half-open, it closes when so many places are open again: after 1, 2, 4, 8 calls at once."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
STUCK: Final = 2.5
"""Seconds without a call coming or going after which it makes no sense to wait for a place."""


class CallOutcome(StrEnum):
    """What the end of a call says about the server."""

    WELL = "well"
    SICK = "sick"
    """Nothing came back, or trouble of the server's own."""
    MISCONFIGURED = "misconfigured"
    """It will go on like this until a person mends the set-up, so one such answer is enough."""


@dataclass(frozen=True, slots=True)
class CallNotPermitted:
    """The call can't be made now; nothing was sent. ``retry_after`` is in seconds, with jitter."""

    code: Literal["unavailable", "misconfigured", "busy"]
    reason: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class BreakerState:
    """How a server is doing, as far as its callers know.

    ``reason`` and ``retry_in`` (seconds until a call is let through) are None when it is closed.
    """

    state: Literal["closed", "open", "half-open"]
    since_seconds: float
    reason: str | None = None
    retry_in: float | None = None


Permit: TypeAlias = int
"""Allowed to make one call. The number tells since when: see ``CircuitBreaker._era``."""


class CircuitBreaker:
    """The places for calls to one server. Times are in seconds; ``clock`` never goes back.

    ``queue``: so many may wait for a place, where those who wait take up room that others need.
    """

    def __init__(
        self,
        server: str,
        places: int,
        *,
        queue: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._server = server
        self._places = places
        self._queue = queue
        self._clock = clock
        self._chance = chance
        self._since = clock()
        self._trouble: tuple[Literal["unavailable", "misconfigured"], str] | None = None
        self._pause = 0.0
        self._until = 0.0
        self._limit = places
        self._out = 0
        # Goes up when it opens. A call that began before says nothing about how things are since.
        self._era = 0
        self._out_in_era = 0
        self._moved = self._since
        self._failures = 0
        self._waiting: dict[asyncio.Future[Permit | CallNotPermitted], None] = {}

    @property
    def state(self) -> BreakerState:
        """What to tell people. It changes by itself from open to half-open."""
        now = self._clock()
        if self._trouble is None:
            return BreakerState("closed", now - self._since)
        left = max(0.0, self._until - now)
        state: Literal["open", "half-open"] = "open" if left else "half-open"
        return BreakerState(state, now - self._since, self._trouble[1], left)

    async def enter(self, patience: float) -> Permit | CallNotPermitted:
        """Wait up to ``patience`` seconds for a place, which must be given back by ``leave``."""
        if self._is_open():
            return self._refusal()
        if self._has_room():  # then no caller is waiting
            return self._let_in()
        if self._clock() - self._moved > STUCK or len(self._waiting) == self._queue:
            return self._busy()
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Permit | CallNotPermitted] = loop.create_future()
        self._waiting[waiter] = None
        enough = loop.call_later(patience, self._turn_away, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and isinstance(place := waiter.result(), Permit):
                self.leave(place, None)
            raise
        finally:
            enough.cancel()
            self._waiting.pop(waiter, None)

    def retry_after(self) -> float | None:
        """How long to stay away, in seconds: longer than it is open, and never the same twice.

        None: it is not open.
        """
        if not self._is_open():
            return None
        left = self._until - self._clock()
        return left * (1 + self._chance() / 4) + self._chance()

    def leave(self, place: Permit, health: CallOutcome | None, reason: str = "") -> None:
        """Give the place back, and say how it went; None: the call ended without a meaning."""
        self._out -= 1
        self._moved = self._clock()
        if place == self._era:
            self._out_in_era -= 1
            if health is CallOutcome.WELL:
                self._went_well()
            elif health is not None:
                self._went_wrong(health, reason)
        while self._waiting and self._has_room():
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():  # else it was cancelled or turned away this moment
                waiter.set_result(self._let_in())

    def _turn_away(self, waiter: "asyncio.Future[Permit | CallNotPermitted]") -> None:
        if not waiter.done():
            waiter.set_result(self._busy())

    def _is_open(self) -> bool:
        return self._trouble is not None and self._clock() < self._until

    def _has_room(self) -> bool:
        return not self._is_open() and self._out < self._places and self._out_in_era < self._limit

    def _let_in(self) -> Permit:
        self._out += 1
        self._out_in_era += 1
        self._moved = self._clock()
        return self._era

    def _refusal(self) -> CallNotPermitted:
        assert self._trouble is not None
        return CallNotPermitted(*self._trouble, self.retry_after() or 0.0)

    def _busy(self) -> CallNotPermitted:
        # Where calls come back there is a place in a moment. Where none does, stay away for long
        # enough to leave the worker's memory, so that others have room.
        stuck = self._clock() - self._moved > STUCK
        pause = 5.0 if stuck else 0.5
        reason = f"{self._out} calls are out already"
        return CallNotPermitted("busy", reason, pause + pause * self._chance())

    def _went_well(self) -> None:
        self._failures = 0
        if self._trouble is None:
            return
        self._limit += 1
        # Where few calls are made, time without trouble counts as well.
        if self._limit >= PROVEN or self._clock() - self._until >= LONGEST_PAUSE:
            lasted = self._clock() - self._since
            _logger.info("evolution is back", server=self._server, after_seconds=round(lasted, 1))
            self._trouble, self._limit, self._since = None, self._places, self._clock()

    def _went_wrong(self, health: CallOutcome, reason: str) -> None:
        self._failures += 1
        if self._trouble is not None:
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
        elif health is CallOutcome.SICK and self._failures < FAILURES:
            return
        else:
            self._pause, self._since = FIRST_PAUSE, self._clock()
        self._open(
            "misconfigured" if health is CallOutcome.MISCONFIGURED else "unavailable", reason
        )

    def _open(self, code: Literal["unavailable", "misconfigured"], reason: str) -> None:
        if self._trouble is None or self._trouble[0] != code:
            _logger.error(
                f"evolution {code}", server=self._server, reason=reason, retry_in=self._pause
            )
        self._trouble, self._until = (code, reason), self._clock() + self._pause
        self._era += 1
        self._limit, self._out_in_era, self._failures = 1, 0, 0
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(self._refusal())
        self._waiting.clear()
