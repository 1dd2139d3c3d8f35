"""The loop of one saga: the rules of the decider, carried out and recorded.

Carry out the claimed attempt, append its outcome together with the decisions that follow and the
intent of the next attempt, repeat. That is one commit a step, shared with other sagas.

The sequence number is the fencing token. When an append loses, another worker (or a cancel) was
first: the driver reads the history again and continues only if the attempt that it carries out is
still the claimed one. Otherwise it drops the saga, so a zombie can't write.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from evosaga.events import syncpoints
from evosaga.events.append import Append
from evosaga.events.event_log import EventLog, VersionConflict
from evosaga.events.model import (
    CompensationStarted,
    CompensationSucceeded,
    Recorded,
    SagaEvent,
    StepStarted,
    StepSucceeded,
)
from evosaga.events.turns import WAITING, waits_for
from evosaga.orchestrator.engine.commit import WorkerTerms, late, next_commit
from evosaga.orchestrator.engine.decider import (
    Idle,
    Run,
    attempt_lost,
    attempt_not_started,
    deadline_seconds,
    decide,
)
from evosaga.orchestrator.engine.execution import execute, from_exception, outcome_event, where
from evosaga.orchestrator.engine.instance import SagaInstance
from evosaga.orchestrator.engine.lease import Lease, LeaseLost
from evosaga.orchestrator.engine.left_to_others import LeftToOthers
from evosaga.orchestrator.engine.limits import LIMITED, Limiter
from evosaga.orchestrator.engine.measures import Measures
from evosaga.orchestrator.engine.parking import tell_parked
from evosaga.orchestrator.engine.places import PATIENCE, Places
from evosaga.orchestrator.engine.quarantine import Quarantine
from evosaga.orchestrator.engine.repeated_holds import hold_of, interrupted
from evosaga.orchestrator.engine.state import State
from evosaga.orchestrator.engine.transient_errors import is_transient, retry_while_transient
from evosaga.orchestrator.engine.turns import AheadParked, unsure, waits
from evosaga.sagas.definition import Kind
from evosaga.sagas.outcome import Held, NotOnThisWorker
from evosaga.sagas.registry import SagaRegistry

_logger = structlog.get_logger("evosaga.engine")
_CLAIMS: Final = (StepStarted, CompensationStarted)
_PROGRESS_EVENTS: Final = frozenset({StepSucceeded, CompensationSucceeded})
LONGEST_WAIT: Final = 5.0
"""Seconds that a saga may wait in memory at all; what waits longer is swept when it is due."""


class SagaDriver:
    """Drives sagas of one worker, each in a task of its own."""

    def __init__(
        self,
        registry: SagaRegistry,
        log: EventLog,
        services: object,
        lease: Lease,
        quarantine: Quarantine,
        others: LeftToOthers,
        longest_wait: Callable[[], float],
        limiter: Limiter | None = None,
    ) -> None:
        """``longest_wait``: seconds that a saga may wait in memory before it is released."""
        self.stopping = False
        """Set once, and no attempt begins any more."""
        self._registry = registry
        self._log = log
        self._services = services
        self._lease = lease
        self._quarantine = quarantine
        self._others = others
        self._longest_wait = longest_wait
        self._places = Places(limiter)
        self.measures = Measures()

    async def drive(self, live: SagaInstance, lost_attempt: bool) -> None:
        """Run the loop; with ``lost_attempt`` the attempt in flight died with its worker."""
        try:
            if unsure(live.state) and not late(live, live.state) and not await self._turn(live):
                return
            fact: SagaEvent | None = None
            if live.refused is None:  # else the attempt that is out was never made
                lost = lost_attempt and live.state.in_flight is not None
                fact = attempt_lost(live.state) if lost else interrupted(live)
            if fact is None:
                fact = await self._attempt(live)
            while await self._record(live, fact) and await self._wait(live):
                fact = await self._attempt(live)
        except Exception as error:
            if is_transient(error):  # an outage: its row says when it is due, here or elsewhere
                _logger.warning("saga_retrying", saga_id=str(live.saga_id), reason=where(error))
                return
            # Our own bug, or a history that makes no sense: the others go on.
            _logger.error("saga_quarantined", saga_id=str(live.saga_id), at=where(error))
            await self._quarantine.set_aside(live.saga_id, live.state.sequence, where(error))
        finally:
            await self._places.give_back(live)

    async def _turn(self, live: SagaInstance) -> bool:
        """Whether a saga that is behind another goes on, to its first step or to its end."""
        worker, log = self._lease.worker, self._log
        turn = await retry_while_transient(lambda: log.take_turn(live.saga_id, worker))
        live.has_turn = turn.kind == "come"
        ahead = turn.ahead
        if ahead is None:
            return live.has_turn
        # What begins with a step that can't be rolled back goes on waiting: it would be parked too.
        if ahead.parked and live.saga.steps[0].kind is not Kind.RETRYABLE:
            live.refused = AheadParked(ahead)
            return True
        said, limit = waits_for(ahead.saga_id), deadline_seconds(live.saga, live.state)
        if (flight := live.state.in_flight) is not None:  # claimed to be refused, and never made
            goes_on = Held(code=WAITING, message=said)
            if not await self._record(live, outcome_event(flight, goes_on)):
                return False
            if not waits(live.state):  # it was cancelled, say
                return True
        await retry_while_transient(lambda: log.wait_for_turn(live.saga_id, worker, said, limit))
        return False

    async def _attempt(self, live: SagaInstance) -> SagaEvent | None:
        """Carry out the attempt that is claimed; None when there is none."""
        flight = live.state.in_flight
        if flight is None:
            return None
        step = live.saga.step(flight.step)
        if self._places.needed(live, step, flight.direction):  # it is held under the same claim
            full = await self._places.ask(live, step, flight.direction)
            if full is not None:
                return outcome_event(flight, Held(LIMITED, full.message, full.again))
        try:
            self._lease.check()
        except LeaseLost:
            return await self._without_lease(live, attempt_not_started)
        try:
            return await execute(live, flight, self._services)
        except NotOnThisWorker as error:
            self._others.note(live.saga_id)
            return outcome_event(flight, from_exception(live, flight, error))
        except LeaseLost:
            return await self._without_lease(live, attempt_lost)
        finally:
            self._places.used(live)

    async def _without_lease(
        self, live: SagaInstance, outcome: Callable[[State], SagaEvent]
    ) -> SagaEvent:
        """Give the attempt up. A worker that has taken the saga over wins the append of this."""
        _logger.warning("attempt_abandoned", saga_id=str(live.saga_id), reason="lease lost")
        await self._lease.regained()
        return outcome(live.state)

    async def _wait(self, live: SagaInstance) -> bool:
        """Sleep until the next attempt is due; False when there is nothing left to do here."""
        await self._places.give_back_used(live)
        if live.state.in_flight is not None:
            return True
        action = decide(live.saga, live.state)
        if isinstance(action, Run) and not self.stopping:
            left = live.last_at + action.delay - time.monotonic()
            if (limit := deadline_seconds(live.saga, live.state)) is not None:
                left = min(left, live.started_at + limit - time.monotonic())
            if left > LONGEST_WAIT or (live.released and left > 0):
                return False
            if left > 0 and await _sleep_or_wake(live, left):
                # There is a new event, a cancel say: what is due may be something else by now.
                return await self._reload(live, None) and not self.stopping
            if self._places.needed(live, action.step, action.direction):
                return await self._place(live, action)
        return not isinstance(action, Idle) and not self.stopping

    async def _place(self, live: SagaInstance, action: Run) -> bool:
        """Wait for a place; False when the saga was released until it asks again."""
        limit, since = deadline_seconds(live.saga, live.state), time.monotonic()
        while not late(live, live.state) and not self.stopping:
            full = await self._places.ask(live, action.step, action.direction)
            if full is None:
                return True
            now, pause = time.monotonic(), full.again
            if limit is not None:
                pause = min(pause, max(0.0, live.started_at + limit - now))
            if now + pause - since > min(PATIENCE, self._longest_wait()):
                at, said, owner = live.state.sequence, full.message, self._lease.worker
                await self._log.set_aside(live.saga_id, at, owner, pause, LIMITED, said)
                return False
            if await _sleep_or_wake(live, pause):
                return await self._reload(live, None) and not self.stopping
        return not self.stopping

    async def _record(self, live: SagaInstance, fact: SagaEvent | None) -> bool:
        """Append what happened and what follows; False when another worker drives the saga."""
        raised: Exception | None = None
        if (hold := hold_of(live, fact, self._lease.worker)) is not None:
            said = await retry_while_transient(lambda: self._log.hold(hold))
            if said == "lost":
                _logger.warning(
                    "version_conflict", saga_id=str(live.saga_id), reason="not its owner"
                )
            if said != "moved":
                return False
        while True:
            self._lease.bind_lease()
            append = self._append(live, fact, raised)
            if append is None:
                return True
            try:
                appended = await self._log.append(append)
            except VersionConflict:
                if not await self._reload(live, fact):
                    _logger.warning(
                        "version_conflict",
                        saga_id=str(live.saga_id),
                        reason="another append came first",
                    )
                    return False
                continue
            except Exception as error:
                if append.join is None:
                    raise
                # The joined effect took its own commit down, and what happened before with it.
                if isinstance(error, NotOnThisWorker):
                    self._others.note(live.saga_id)
                raised = error
                continue
            now = time.monotonic()
            took, age = now - live.last_at, now - live.started_at
            self.measures.note(live.saga.name, appended.events, took, age)
            live.apply(appended, now)
            if any(type(event) in _PROGRESS_EVENTS for event in appended.events):
                self._quarantine.forget(live.saga_id)
            tell_parked(live, appended.events)
            await syncpoints.recorded(appended.events)
            return True

    async def _reload(self, live: SagaInstance, fact: SagaEvent | None) -> bool:
        """Take in what others appended; whether the attempt this worker makes still counts."""
        history = await retry_while_transient(lambda: self._log.read(live.saga_id))
        if not history:  # Postgres went back to a time before it: there is nothing to drive
            return False
        before = live.state
        live.reload(self._registry, history)
        return still_claimed(before, live.state, history, fact)

    def _append(
        self, live: SagaInstance, fact: SagaEvent | None, raised: Exception | None = None
    ) -> Append[State] | None:
        terms = WorkerTerms(
            self._lease.worker,
            lambda: not self.stopping,
            self._longest_wait(),
            self._services,
            limited=self._places.limiter is not None,
        )
        return next_commit(live, fact, raised, terms)


def still_claimed(
    before: State, now: State, history: Sequence[Recorded], fact: SagaEvent | None
) -> bool:
    """Whether the attempt with this ``fact`` is the one that is claimed ``now``. Pure.

    Without a fact this worker makes none, so none may be out.
    """
    if fact is None:
        return now.in_flight is None
    # A held attempt is claimed anew under its old number: a claim made since is another one.
    claims = (r.sequence for r in history if isinstance(r.event, _CLAIMS))
    return (
        now.in_flight is not None
        and now.in_flight == before.in_flight
        and max(claims) < before.sequence
    )


async def _sleep_or_wake(live: SagaInstance, within: float) -> bool:
    """Sleep so many seconds; True when it was woken early."""
    try:
        await asyncio.wait_for(live.wake.wait(), within)
    except TimeoutError:
        return False
    live.wake.clear()
    return True
