"""Quarantine for sagas that fail in our own code, or have a history this release can't read.

The other sagas go on. A quarantined one is released for any worker after a pause that grows each
time, so it is retried soon after a release that mends it, and never in a hot loop. Its status row
says what happened, for ``status`` and ``why``, until it makes progress.
"""

from typing import Final
from uuid import UUID

import structlog

from evosaga.events.database import TRANSIENT
from evosaga.events.event_log import EventLog

_logger = structlog.get_logger("evosaga.quarantine")
STUMBLED: Final = "stumbled"
"""The code in the status row of a quarantined saga."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
_MOST: Final = 1000
"""So many sagas are remembered; one that is forgotten begins with the shortest pause again."""


class Quarantine:
    """The quarantine of one worker. Pauses are in seconds."""

    def __init__(self, log: EventLog, worker: str) -> None:
        self._log = log
        self._worker = worker
        self._times: dict[UUID, int] = {}

    def forget(self, saga_id: UUID) -> None:
        """It made progress."""
        self._times.pop(saga_id, None)

    async def set_aside(self, saga_id: UUID, sequence: int, what: str) -> None:
        """Release it for a while, unless it has moved on from ``sequence`` or changed its owner.

        ``what`` is shown to people: no secrets, no text from outside.
        """
        times = self._times.pop(saga_id, 0) + 1
        if len(self._times) >= _MOST:
            del self._times[next(iter(self._times))]
        self._times[saga_id] = times
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(times - 1, 20))
        _logger.error("saga set aside", saga_id=str(saga_id), reason=what, times=times, pause=pause)
        again = "" if times == 1 else f" ({times} times now)"
        message = f"it failed in a worker{again}: {what}"
        try:
            await self._log.set_aside(saga_id, sequence, self._worker, pause, STUMBLED, message)
        except TRANSIENT:  # then it waits for its lease to run out
            _logger.warning("not set aside", saga_id=str(saga_id))
