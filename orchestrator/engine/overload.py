"""How hard pressed a process is, told by how late its heartbeats are.

A worker with too little CPU (or before a slow Postgres) beats late, loses its lease, gives up what
it is at and has it taken over by others who are no better off, which is more work for all of them:
without measure nothing ends any more. So it asks for a longer lease, looks around less often and
takes fewer sagas, until it keeps up again.

Pure: seconds in, seconds out. One late beat is a pause and says nothing; the second worst of the
last few does.
"""

from collections import deque
from typing import Final

LONGEST_LEASE: Final = 60.0
"""Seconds; no setting asks for more either. A worker that dies is missed after so long."""
_LOOKS: Final = 8
_JITTER: Final = 0.2
"""Seconds of lateness that any busy machine has."""
_TIMES: Final = 8.0
"""A lease is so many times as long as the beats are late."""
_BEATS: Final = 6.0
"""Beats in a lease that was lengthened."""


class LoadMeter:
    """Of one worker, which has a lease of ``ttl`` and beats every ``beat`` while it keeps up."""

    def __init__(self, ttl: float, beat: float) -> None:
        self._ttl, self._beat = ttl, beat
        self._late: deque[float] = deque([0.0] * _LOOKS, maxlen=_LOOKS)

    def note(self, late: float) -> None:
        """A beat was committed so many seconds after it was due."""
        self._late.append(late)

    @property
    def late(self) -> float:
        """How late the beats are, in seconds."""
        return sorted(self._late)[-2]

    @property
    def pressed(self) -> bool:
        """Whether this worker does not keep up."""
        return self.late > max(_JITTER, self._ttl / 4)

    @property
    def ttl(self) -> float:
        """The lease to ask for."""
        if not self.pressed:
            return self._ttl
        return max(self._ttl, min(LONGEST_LEASE, _TIMES * self.late))

    @property
    def beat(self) -> float:
        """The pause before the next beat."""
        return max(self._beat, self.ttl / _BEATS if self.pressed else 0.0)

    @property
    def slower(self) -> float:
        """How many times as long whatever is done now and then should wait."""
        return self.ttl / self._ttl


class Concurrency:
    """How many sagas a worker takes: of ``capacity`` as many as it keeps up with."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.now = capacity

    def adapt(self, pressed: bool, driving: int) -> None:
        """After each beat: half of what it drives while it is pressed, then slowly more again."""
        if pressed:
            self.now = max(1, min(self.now, driving) // 2)
        else:
            self.now = min(self._capacity, self.now + max(1, self.now // 4))
