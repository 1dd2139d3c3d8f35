"""Places for the attempts of limited steps: had before an attempt is claimed, given back after it
is recorded, so that a Redis which does not answer delays no record.

A saga that waits for one writes no event, and its row says what it waits for.
"""

import time
from typing import Final

from evosaga.events.model import Direction
from evosaga.orchestrator.engine.instance import Place, SagaInstance
from evosaga.orchestrator.engine.limits import Limiter, NoPlace
from evosaga.orchestrator.engine.projection import lease_seconds
from evosaga.sagas.definition import InCommit, Step

PATIENCE: Final = 1.0
"""Seconds that a saga waits for a place in memory; then its row says so, and it is released."""


class Places:
    """Those of the sagas that one worker drives. Without a limiter nothing is limited."""

    def __init__(self, limiter: Limiter | None) -> None:
        self.limiter = limiter

    def needed(self, live: SagaInstance, step: Step, direction: Direction) -> bool:
        """Whether an attempt needs a place that it has not."""
        effect = step.do if direction == "forward" else step.undo
        if self.limiter is None or not step.limits or isinstance(effect, InCommit):
            return False
        place = live.place
        return place is None or (place.step.name, place.direction) != (step.name, direction)

    async def ask(self, live: SagaInstance, step: Step, direction: Direction) -> NoPlace | None:
        """Get a place for an attempt; None: it has one."""
        assert self.limiter is not None
        await self.give_back(live)
        place = Place(step, direction, time.monotonic())
        seconds = lease_seconds(step)
        found = await self.limiter.enter(step.limits, live.saga_id, place.what, seconds)
        if found is None:
            live.place = place._replace(since=time.monotonic())
        return found

    def used(self, live: SagaInstance) -> None:
        """Its attempt is over: the place counts for no other, and is given back later."""
        if (place := live.place) is not None:
            live.place, live.used = None, (place, time.monotonic() - place.since)

    async def give_back_used(self, live: SagaInstance) -> None:
        """Give back the place of an attempt that is over, if there is one."""
        if live.used is None or self.limiter is None:
            return
        (place, took), live.used = live.used, None
        await self.limiter.leave(place.step.limits, live.saga_id, place.what, took)

    async def give_back(self, live: SagaInstance) -> None:
        """Give back what it has, if anything."""
        await self.give_back_used(live)
        self.used(live)
        await self.give_back_used(live)
