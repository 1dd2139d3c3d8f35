"""How long attempts and sagas take, counted as they are committed, for Prometheus.

Counted in memory, so nothing has to be read from the log, and without a library: a worker that
serves no metrics imports none.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from evosaga.events.model import (
    CompensationFailed,
    CompensationSucceeded,
    SagaCompensated,
    SagaCompleted,
    SagaEvent,
    SagaFailed,
    StepFailed,
    StepSucceeded,
)

ATTEMPTS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SAGAS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds of the buckets, in seconds; what takes longer is in one above them."""
_ENDS: Final[Mapping[type[SagaEvent], str]] = {
    SagaCompleted: "completed",
    SagaCompensated: "compensated",
    SagaFailed: "failed",
}


@dataclass(slots=True)
class Buckets:
    """One histogram's numbers."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Measures:
    """Of one worker, since it started. Labels are words of definitions, never of data."""

    attempts: dict[tuple[str, str, str, str], Buckets] = field(default_factory=dict)
    """By saga, step, direction and outcome."""
    sagas: dict[tuple[str, str], Buckets] = field(default_factory=dict)
    """By saga and status at the end; a parked one ends for now."""

    def note(self, saga: str, events: Sequence[SagaEvent], attempt: float, age: float) -> None:
        """Events were committed ``attempt`` seconds after the claim before them, in a saga that
        began ``age`` seconds ago. A second outcome among them took no time of its own.
        """
        for event in events:
            kind = type(event)
            if kind in _OUTCOMES:
                direction, outcome = _OUTCOMES[kind]
                ending: Any = event  # of the four kinds, which have a step
                key = (saga, ending.step, direction, outcome or ending.outcome)
                buckets = self.attempts.get(key)
                if buckets is None:
                    buckets = self.attempts[key] = Buckets(ATTEMPTS)
                buckets.add(attempt)
                attempt = 0.0
            elif kind in _ENDS:
                self.sagas.setdefault((saga, _ENDS[kind]), Buckets(SAGAS)).add(age)


_OUTCOMES: Final[Mapping[type[SagaEvent], tuple[str, str | None]]] = {
    StepSucceeded: ("forward", "done"),
    StepFailed: ("forward", None),
    CompensationSucceeded: ("compensation", "done"),
    CompensationFailed: ("compensation", None),
}
"""Direction and outcome of the events that end an attempt; None: the event names it."""
