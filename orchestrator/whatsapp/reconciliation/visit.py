"""A comparison that a person asked for: look twice, and with ``fix`` repair and look again.

The command line draws it; the HTTP API answers with ``document``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from evosaga.events import log_loss
from evosaga.orchestrator.queries.sagas import sagas_of, under_way
from evosaga.orchestrator.whatsapp.reconciliation import confirmations
from evosaga.orchestrator.whatsapp.reconciliation.confirmations import ObservedDrift
from evosaga.orchestrator.whatsapp.reconciliation.drift import Drift
from evosaga.orchestrator.whatsapp.reconciliation.reconciler import (
    EVERYTHING,
    Asked,
    Found,
    Reconciler,
    allowed,
    described,
    find,
    removable,
    repair,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Keep
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import Policy

_BETWEEN: Final = 1.5
"""Seconds between the two looks: what a saga is just doing is over by then, mostly."""
_POLL: Final = 0.1
_AT_ONCE: Final = 4


class NotRemovable(Exception):
    """An instance that is to be removed is not there, or a row names it. The text has the cure."""


class NotCompared(NamedTuple):
    """What a look says nothing of, so that every instance on the servers is counted."""

    unseen: Mapping[str, str] = {}
    """Evolution servers that could not be looked at, and why."""
    strangers: Sequence[str] = ()
    """Instances that are nobody's we know of."""
    busy: int = 0
    """Instances that sagas are at work for."""


@dataclass(frozen=True, slots=True)
class Visited:
    """What is wrong; after repairs, what is still. ``repairs`` is None where none were asked for.

    ``before``: what was wrong before them. ``stopped``: why nothing was removed.
    """

    drifts: Sequence[Drift]
    rest: NotCompared
    repairs: Sequence[Mapping[str, Any]] | None = None
    before: Sequence[Drift] = ()
    stopped: str | None = None

    def document(self) -> dict[str, Any]:
        """For programs."""
        told: dict[str, Any] = {"drifts": [described(drift) for drift in self.drifts]}
        if self.repairs is not None:
            before = [described(drift) for drift in self.before]
            told |= {"repairs": list(self.repairs), "before": before}
        if self.rest.unseen:
            told["not_looked_at"] = dict(self.rest.unseen)
        return told | {"strangers": list(self.rest.strangers), "busy": self.rest.busy}


async def _nothing(*_: object) -> None:
    pass


@dataclass(slots=True)
class Visit:
    """One comparison. ``timeout``: seconds for the repairs, which go on after that.

    ``found`` is called with the drifts before they are repaired, and ``waiting`` meanwhile.
    """

    keeper: Reconciler
    keep: Keep | None = None
    remove: Sequence[str] = ()
    timeout: float = 120.0
    found: Callable[[Sequence[Drift], str | None], Awaitable[None]] = _nothing
    waiting: Callable[[], Awaitable[None]] = _nothing
    _rest: NotCompared = field(default_factory=NotCompared, init=False)

    async def look(self) -> Visited:
        """Change nothing, not even what is known of drifts. Raises ``ObservationFailed``."""
        seen = await self._look_twice(note=False)
        return Visited([one.drift for one in seen], self._rest)

    async def fix(self) -> Visited:
        """Repair what may be. Raises ``ObservationFailed`` and ``NotRemovable``."""
        seen = await self._look_twice(note=True)
        before = [one.drift for one in seen]
        self._check(before)
        loss = await log_loss.recorded(self.keeper.pool) if seen else None
        said = f"the log went back, so nothing is removed yet: {log_loss.RECOVER}"
        stopped = said if loss is not None else None
        await self.found(before, stopped)
        repairs = await self._repair(seen)
        left = [one.drift for one in await self._look_twice(note=True)] if before else []
        return Visited(left, self._rest, repairs, before, stopped)

    def _check(self, drifts: Sequence[Drift]) -> None:
        known = removable(drifts)
        for name in self.remove:
            if name not in known:
                could = ", ".join(known) or "none"
                told = f"there is no {name} to remove; those that no row names: {could}"
                raise NotRemovable(told)

    async def _look_twice(self, *, note: bool) -> list[ObservedDrift]:
        """What two looks saw. Only who repairs leaves a trace of what was seen."""
        first = await find(self.keeper, keep=self.keep)
        self._rest = NotCompared(first.unseen, first.strangers, first.busy)
        if not first.drifts:
            return []
        if note:
            await self._note(first)
        await asyncio.sleep(_BETWEEN)
        before = {(drift.what, drift.where) for drift in first.drifts}
        second = await find(self.keeper, keep=self.keep)
        unseen = {**first.unseen, **second.unseen}
        self._rest = NotCompared(unseen, second.strangers, second.busy)
        if note:
            noted = await self._note(second)
        else:
            now = datetime.now(UTC)
            noted = [ObservedDrift(drift, now, 2, 0, True) for drift in second.drifts]
        return [one for one in noted if (one.drift.what, one.drift.where) in before]

    async def _note(self, found: Found) -> list[ObservedDrift]:
        organization = self.keep.organization_id if self.keep else None
        return await confirmations.note(
            *(self.keeper.pool, found.drifts),
            kinds=EVERYTHING,
            blind=found.blind,
            organization_id=organization,
            grace=0.0,
        )

    async def _repair(self, seen: Sequence[ObservedDrift]) -> list[dict[str, Any]]:
        """Ask for the repairs that are allowed, in two waves, and wait for them."""
        policies: Collection[Policy] = {"auto", "ask"} if self.keep else {"auto"}
        mendable = [one for one in seen if allowed(one.drift, policies, self.remove)]
        deadline = time.monotonic() + self.timeout
        told: list[dict[str, Any]] = []
        # What a row names is changed before what it no longer names is removed.
        for wave in (False, True):
            asked = await self._ask([one for one in mendable if one.drift.waits is wave])
            while asked and time.monotonic() < deadline:
                if await self._over(asked):
                    break
                await self.waiting()
                await asyncio.sleep(_POLL)
            told += await self._outcomes(asked)
        return told

    async def _ask(self, wanted: Sequence[ObservedDrift]) -> list[Asked]:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(sighting: ObservedDrift) -> Asked | None:
            async with limit:
                return await repair(self.keeper, sighting)

        answers = await asyncio.gather(*(one(sighting) for sighting in wanted))
        return [answer for answer in answers if answer is not None]

    async def _over(self, asked: Sequence[Asked]) -> bool:
        return not await under_way(self.keeper.pool, [one.saga_id for one in asked])

    async def _outcomes(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        ids = [one.saga_id for one in asked]
        sagas = {one.saga_id: one for one in await sagas_of(self.keeper.pool, ids, limit=len(ids))}
        return [
            {
                "what": one.sighting.drift.what,
                "where": one.sighting.drift.where,
                "saga_id": str(one.saga_id),
                "status": sagas[one.saga_id].status,
                "message": sagas[one.saga_id].message,
            }
            for one in asked
        ]
