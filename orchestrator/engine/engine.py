"""The engine: the sagas that one worker drives, as many as it keeps up with.

Each saga in flight is one asyncio task with the loop of ``evosaga.orchestrator.engine.driver``.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Final
from uuid import UUID

import structlog

from evosaga.events.event_log import EventLog
from evosaga.events.model import Recorded
from evosaga.orchestrator.engine.blocking import AtWork, LoopWatchdog
from evosaga.orchestrator.engine.driver import LONGEST_WAIT, SagaDriver
from evosaga.orchestrator.engine.execution import where
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.left_to_others import LeftToOthers
from evosaga.orchestrator.engine.limits import Limiter
from evosaga.orchestrator.engine.measures import Measures
from evosaga.orchestrator.engine.overload import Concurrency
from evosaga.orchestrator.engine.quarantine import Quarantine
from evosaga.orchestrator.engine.repeated_holds import ClaimedRow, resume
from evosaga.orchestrator.engine.state import State
from evosaga.orchestrator.engine.turns import waits
from evosaga.sagas.registry import SagaRegistry

_logger = structlog.get_logger("evosaga.engine")
_CROWDED_WAIT: Final = 0.2
"""Seconds that a saga may wait in memory, where it uses capacity, when that is scarce."""
_MOST_ENDED: Final = 10_000
"""Ended sagas that are kept for the next sweep. What is behind further ones has its turn, too."""


class Engine:
    """Drives the sagas of one worker."""

    def __init__(
        self,
        registry: SagaRegistry,
        log: EventLog,
        services: object,
        lease: Lease,
        *,
        capacity: int,
        share: float = 1.0,
        limiter: Limiter | None = None,
    ) -> None:
        """``share``: how much of the capacity one organization may use. ``limiter``: None where
        nothing is limited, as in tests of a definition.
        """
        self.registry = registry
        self.limiter = limiter
        self.watchdog: LoopWatchdog | None = None
        """What sees steps that block the loop, where it is watched."""
        self._lease = lease
        self._quarantine = Quarantine(log, lease.worker)
        self._others = LeftToOthers()
        self._driver = SagaDriver(
            registry,
            log,
            services,
            lease,
            self._quarantine,
            self._others,
            self._longest_wait,
            limiter,
        )
        self._capacity = capacity
        self.share = max(1, math.ceil(capacity * share))
        """Sagas of one organization that this worker drives, at the most; for a moment more, when
        the stream and a sweep fill the same share at once.
        """
        self._of: Counter[UUID] = Counter()
        self._driving: dict[UUID, tuple[asyncio.Task[None], SagaInstance, UUID | None]] = {}
        """Each with its organization, as it was counted."""
        self._ended: set[UUID] = set()
        self._allowed = Concurrency(capacity)
        self._has_capacity = asyncio.Event()
        self._has_capacity.set()
        lease.on_beat = self._adapt

    @property
    def worker(self) -> str:
        """The name under which this engine claims attempts."""
        return self._lease.worker

    @property
    def measures(self) -> Measures:
        """How long its sagas and their attempts have taken."""
        return self._driver.measures

    @property
    def driving(self) -> frozenset[UUID]:
        """The sagas this worker drives right now."""
        return frozenset(self._driving)

    @property
    def left_alone(self) -> frozenset[UUID]:
        """The sagas that this worker does not take: it drives them, or can't go on with them."""
        return self.driving | self._others.now

    @property
    def free(self) -> int:
        """How many more sagas this worker takes."""
        return 0 if self._driver.stopping else max(0, self._allowed.now - len(self._driving))

    def take_ended(self) -> set[UUID]:
        """The sagas that ended or were parked here since this was last asked."""
        ended, self._ended = self._ended, set()
        return ended

    def driving_of(self, organization_id: UUID) -> int:
        """How many sagas of that organization this worker drives."""
        return self._of[organization_id]

    @property
    def largest(self) -> dict[UUID, int]:
        """The organizations that use much of their share, and how many sagas each has here."""
        much = max(2, self.share // 8)
        if len(self._driving) < much:
            return {}
        return {whose: number for whose, number in self._of.items() if number >= much}

    def _longest_wait(self) -> float:
        """How long a saga may wait in memory, in seconds: briefly when capacity is scarce."""
        return LONGEST_WAIT if 2 * len(self._driving) <= self._capacity else _CROWDED_WAIT

    async def wait_for_capacity(self) -> None:
        """Wait until another batch may be taken in."""
        await self._has_capacity.wait()

    def bind_lease(self) -> None:
        """The sagas started from here on rest on the lease as it is now."""
        self._lease.bind_lease()

    def start(self, saga_id: UUID, state: State, correlation_id: str) -> None:
        """Drive a saga whose beginning, with its first intent, this worker has just committed."""
        if saga_id in self._driving or waits(state):
            return
        self._spawn(
            SagaInstance.started(self.registry, saga_id, state, correlation_id), lost_attempt=False
        )

    def take_over(
        self,
        histories: Mapping[UUID, Sequence[Recorded]],
        now: datetime,
        taken: Mapping[UUID, ClaimedRow] = MappingProxyType({}),
    ) -> dict[UUID, str]:
        """Drive sagas that are due; ``now`` is the database's time.

        ``taken``: what their rows say beyond the histories, where they were swept; the sweep has
        called ``bind_lease`` before. One whose history makes no sense is left alone, and the answer
        says why; the others go on.
        """
        senseless: dict[UUID, str] = {}
        for saga_id, history in histories.items():
            if saga_id in self._driving or self._driver.stopping:
                continue
            try:
                live = SagaInstance.rehydrated(self.registry, history, now)
                row = taken.get(saga_id)
                held = row is not None and resume(live, history, row, now)
            except Exception as error:
                senseless[saga_id] = f"its history can't be followed ({where(error)})"
                continue
            self._spawn(live, lost_attempt=live.state.in_flight is not None and not held)
        return senseless

    async def set_aside(self, saga_id: UUID, sequence: int, what: str) -> None:
        """Leave a saga that stands at ``sequence`` for a while; ``what`` was wrong with it."""
        await self._quarantine.set_aside(saga_id, sequence, what)

    def at_work(self, task: str) -> AtWork | None:
        """What the task of that name is at; None: it drives no saga, or makes no attempt."""
        for saga_id, (driving, live, _) in [*self._driving.items()]:
            flight = live.state.in_flight
            if flight is not None and driving.get_name() == task:
                return AtWork(str(saga_id), live.saga.name, flight.step)
        return None

    def wake(self, saga_id: UUID) -> bool:
        """Make a saga that waits here look at its history again; False when it isn't here."""
        driven = self._driving.get(saga_id)
        if driven is not None:
            driven[1].wake.set()
        return driven is not None

    async def stop(self, patience: float) -> None:
        """Finish the attempts that are out, begin no new ones. Seconds."""
        self._driver.stopping = True
        tasks = [task for task, _, _ in self._driving.values()]
        for _, live, _ in self._driving.values():
            live.wake.set()
        if tasks:
            await asyncio.wait(tasks, timeout=patience)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, live: SagaInstance, *, lost_attempt: bool) -> None:
        task = asyncio.create_task(
            self._driver.drive(live, lost_attempt), name=f"saga-{live.saga_id}"
        )
        whose = _organization(live)
        self._driving[live.saga_id] = (task, live, whose)
        if whose is not None:
            self._of[whose] += 1
        task.add_done_callback(lambda done: self._gone(live.saga_id, done))
        if len(self._driving) >= self._allowed.now:
            self._has_capacity.clear()

    def _gone(self, saga_id: UUID, done: asyncio.Task[None]) -> None:
        if saga_id in self._driving and self._driving[saga_id][0] is done:
            _, live, whose = self._driving.pop(saga_id)
            if (
                live.state.status not in ("running", "compensating")
                and len(self._ended) < _MOST_ENDED
            ):
                self._ended.add(saga_id)
            if whose is not None:
                self._of[whose] -= 1
                if not self._of[whose]:
                    del self._of[whose]
        if len(self._driving) < self._allowed.now:
            self._has_capacity.set()

    def _adapt(self) -> None:
        """A worker that does not keep up with its own heartbeats takes less."""
        self._allowed.adapt(self._lease.pace.pressed, len(self._driving))
        if len(self._driving) < self._allowed.now:
            self._has_capacity.set()
        else:
            self._has_capacity.clear()


def _organization(live: SagaInstance) -> UUID | None:
    """Whose saga it is, as its definition says, or its input."""
    try:
        ask = live.saga.organization
        whose = ask(live.input) if ask else getattr(live.input, "organization_id", None)
    except Exception as error:  # a definition's own code: the saga goes on, and counts as nobody's
        _logger.warning("organization unknown", saga_id=str(live.saga_id), at=where(error))
        return None
    return whose if isinstance(whose, UUID) else None
