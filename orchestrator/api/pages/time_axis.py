"""The non-linear axis of a timeline, from moments to percent of its width. Pure.

Sagas take 40 ms when all is well and a week when a person has to act, often both in one history, so
a period's width is a root of its duration. Longer periods are always wider, and none becomes
invisible.
"""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from evosaga.orchestrator.api.pages.attempts import AttemptHistory

_BEND: Final = 0.35
_LEAST: Final = 1.2
"""The smallest weight of an attempt; a millisecond weighs 1."""
_PARKED_SHARE: Final = 0.22
"""The largest share of the width for the time that a saga is parked, when nothing happens."""
_TICK_GAP: Final = 15.0


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    said: str


class Scale:
    """Maps events to percent of the width."""

    def __init__(
        self, told: AttemptHistory, now: datetime | None, next_at: datetime | None
    ) -> None:
        moments = list(told.moments)
        last = moments[-1][0] if moments else -1
        ahead = None
        if now is not None:
            moments.append((last + 1, max(now, moments[-1][1]) if moments else now))
            if next_at is not None and next_at > moments[-1][1] and not _is_out(told):
                moments.append((last + 2, next_at))
                ahead = last + 2
        self._sequences = [sequence for sequence, _ in moments]
        self._times = [at for _, at in moments]
        self._places = self._spread(told)
        self.present = self.of(last + 1) if now is not None else None
        self.ahead = self.of(ahead) if ahead is not None else None

    def _spread(self, told: AttemptHistory) -> list[float]:
        busy = {attempt.first for attempt in told.attempts}
        parked = {mark.sequence for mark in told.marks if mark.kind == "park"}
        weights = []
        for index, (before, after) in enumerate(pairwise(self._times)):
            milliseconds = max(0.0, (after - before).total_seconds() * 1000)
            weight = milliseconds**_BEND
            weights.append(max(_LEAST, weight) if self._sequences[index] in busy else weight)
        idle = [i for i in range(len(weights)) if self._sequences[i] in parked]
        rest = sum(w for i, w in enumerate(weights) if i not in idle) or 1.0
        for index in idle:
            weights[index] = min(weights[index], rest * _PARKED_SHARE / (1 - _PARKED_SHARE))
        total, place, places = sum(weights) or 1.0, 0.0, [0.0]
        for weight in weights:
            place += weight
            places.append(round(place / total * 100, 2))
        return places

    def of(self, sequence: int) -> float:
        """The position of the event with that sequence, or of the next one that has a position."""
        index = min(bisect_left(self._sequences, sequence), len(self._places) - 1)
        return self._places[index]

    def ticks(self) -> list[Tick]:
        """Times since the beginning, where there is room for a label."""
        if not self._times:
            return []
        ticks = [Tick(0.0, "0")]
        end = Tick(self._places[-1], duration((self._times[-1] - self._times[0]).total_seconds()))
        for place, at in zip(self._places, self._times, strict=True):
            if place - ticks[-1].x >= _TICK_GAP and end.x - place >= _TICK_GAP:
                ticks.append(Tick(place, duration((at - self._times[0]).total_seconds())))
        return [*ticks, end] if end.x > 0 else ticks


def _is_out(told: AttemptHistory) -> bool:
    return bool(told.attempts) and told.attempts[-1].ending == "out"


def duration(seconds: float) -> str:
    """A duration in words, in at most two units."""
    if seconds < 0.0005:
        return "0 ms"
    if seconds < 0.9995:
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
