"""Reads from a standby of Postgres, as long as it lags by no more than a limit.

How far it lags is found without trusting clocks: the primary's place in its log is noted once a
second, and the standby has all that was committed before the newest of those notes which it has
reached. A standby that is away, cut off, promoted, too late or another cluster's is not read; the
primary is.
"""

import asyncio
import contextlib
import time
from collections import deque
from typing import Final

import asyncpg
import structlog

from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool, open_pool
from evosaga.events.postgres_url import place_of

_logger = structlog.get_logger("evosaga.replica")
_EVERY: Final = 1.0
"""Seconds between two looks."""
_PATIENCE: Final = 1.0
"""Seconds that a look may take."""
_AWAY: Final = 5.0
"""Seconds until one that did not answer is asked again."""
_KNOWN: Final = _EVERY + _PATIENCE
"""Seconds after a look in which its lag is gone by: who asks during the next look uses the last."""
_NOTES: Final = 60


class Replica:
    """The pools of a primary and its standby, which may lag by ``most_lag`` seconds."""

    def __init__(self, primary: Pool, url: str, most_lag: float) -> None:
        self.most_lag = most_lag
        self.lag: float | None = None
        """Seconds as of the last look; None: not known, so it is not read."""
        self.trouble: str | None = "it was not looked at yet"
        self._primary = primary
        self._url = url
        self._standby: Pool | None = None
        self._notes: deque[tuple[float, float]] = deque(maxlen=_NOTES)
        """When the primary was at which place of its log."""
        self._looked = -1e9
        self._looking = asyncio.Lock()

    async def pool(self) -> Pool:
        """Where to read now."""
        if not self._looking.locked() and time.monotonic() - self._looked >= self._pause:
            async with self._looking:
                await self.look()
        fresh = self.lag is not None and self.lag <= self.most_lag
        if time.monotonic() - self._looked > _KNOWN:
            fresh = False  # nobody has asked for long, and another one is just looking
        if not fresh or self._standby is None:
            return self._primary
        try:
            async with asyncio.timeout(_PATIENCE), self._standby.acquire() as connection:
                await connection.fetchval("SELECT 1")  # one that is kept may be dead by now
                return self._standby
        except (asyncpg.PostgresError, *TRANSIENT) as error:
            self._lost(error)
            return self._primary

    async def look(self) -> None:
        """Find how far the standby lags."""
        before = self.trouble
        try:
            async with asyncio.timeout(_PATIENCE):
                self.lag, self.trouble = await self._compare()
        except (asyncpg.PostgresError, *TRANSIENT) as error:
            self._lost(error)
        self._looked = time.monotonic()
        if self.trouble is not None and before is None:
            _logger.warning("replica not read", at=place_of(self._url), reason=self.trouble)

    def _lost(self, error: Exception) -> None:
        self.lag, self.trouble = None, f"does not answer ({reason(error)})"

    async def close(self) -> None:
        """Close the connections to the standby."""
        if self._standby is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._standby.close(), 5)

    @property
    def _pause(self) -> float:
        return _EVERY if self.lag is not None or len(self._notes) < 2 else _AWAY

    async def _compare(self) -> tuple[float | None, str | None]:
        now = time.monotonic()
        self._notes.append((now, await self._primary.fetchval(_PLACE)))
        if self._standby is None:
            self._standby = await open_pool(self._url, reads_only=True)
        row = await self._standby.fetchrow(_REPLAYED)
        assert row is not None
        if not row["standby"]:
            return None, "is no standby: it takes writes of its own"
        ours, its = await _cluster_of(self._primary), await _cluster_of(self._standby)
        if ours is not None and its is not None and ours != its:
            return None, f"is a standby of another cluster: system identifier {its}, not {ours}"
        reached = [at for at, place in self._notes if place <= row["place"]]
        if not reached:
            return None, f"lags by more than {now - self._notes[0][0]:.0f} s"
        lag = now - reached[-1] if len(reached) < len(self._notes) else 0.0
        late = f"lags by {lag:.0f} s, more than {self.most_lag:g}" if lag > self.most_lag else None
        return lag, late


async def _cluster_of(pool: Pool) -> int | None:
    """What ``initdb`` gave the cluster and all its copies; None where this role may not know."""
    try:
        identifier: int = await pool.fetchval("SELECT system_identifier FROM pg_control_system()")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
        return None  # as before there was this comparison: its lag alone decides
    return identifier


_PLACE: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8"
_REPLAYED: Final = """
SELECT pg_is_in_recovery() AS standby,
    coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0)::float8 AS place
"""
