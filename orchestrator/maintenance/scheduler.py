"""Chores: what is done every now and then, by one worker at a time.

A chore of many parts is shared: each part is a chore of its own (``health/berlin``), and a worker
that has done one takes the next that is due, so that a round is done by as many as there are.

A row in ``evosaga.chores`` says who is at it, until when, when it is due again and what came of
it. Whoever takes a chore that is due holds its lease while it works; a worker that dies or is
paused loses the lease, and another one begins the chore anew. Everything a chore does is harmless
when it is done twice.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

import structlog

from evosaga.events import background
from evosaga.events.clock import LEEWAY
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.leader_election import vacant
from evosaga.orchestrator.engine.lease import LeaseLost
from evosaga.orchestrator.engine.transient_errors import is_transient

_logger = structlog.get_logger("evosaga.chores")
_LEASE: Final = 30.0
_FIRST: Final = 60.0
"""Seconds until a chore is done that was never done before."""
_SOON: Final = 60.0
"""Seconds until a chore is done again that could not be done to its end; doubled each time."""
_LATEST: Final = 3600.0
"""And no longer than that."""
_CHOICE: Final = 8
"""Parts that a worker chooses from: those due for longest."""
_IN_A_ROW: Final = "unfinished_in_a_row"


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of a chore; ``again`` is in seconds, None leaves it to the plan.

    ``unfinished``: there is something that it could not look at, and that may be had later.
    """

    result: dict[str, Any] = field(default_factory=dict)
    again: float | None = None
    unfinished: bool = False

    def after(self, every: float, before: int) -> tuple[dict[str, Any], float]:
        """What is kept of it, and in how many seconds it is due again.

        ``before``: so many times in a row it has been unfinished.
        """
        again = every if self.again is None else self.again
        if not self.unfinished:
            return self.result, min(every, again)
        if self.again is None:
            again, before = min(_LATEST, _SOON * 2.0 ** min(before, 20)), before + 1
        return self.result | {_IN_A_ROW: before}, min(every, again)


StillLeader: TypeAlias = Callable[[], bool]
"""Whether whoever does the chore still holds its lease."""


@dataclass(frozen=True, slots=True)
class Job:
    """One chore, every so many seconds."""

    name: str
    every: float
    work: Callable[[StillLeader], Awaitable[JobResult]]


@dataclass(frozen=True, slots=True)
class SharedJob:
    """A chore in parts, each done every so many seconds by whichever worker is free.

    ``parts``: their names; ``work`` is given one.
    """

    name: str
    every: float
    parts: Sequence[str]
    work: Callable[[str, StillLeader], Awaitable[JobResult]]

    def part(self, name: str) -> Job:
        """The chore that one part is."""
        return Job(f"{self.name}/{name}", self.every, partial(self.work, name))


AnyJob: TypeAlias = Job | SharedJob


@dataclass(slots=True)
class Scheduler:
    """The chores of one worker."""

    pool: Pool
    worker: str
    chores: Sequence[AnyJob]
    lease: float = _LEASE

    async def run(self) -> None:
        """Do what is due, for ever; cancel it to stop."""
        async with asyncio.TaskGroup() as group:
            for chore in self.chores:
                one = self._repeat(chore) if isinstance(chore, Job) else self._share(chore)
                group.create_task(one, name=chore.name)
            # A part that returns counts as broken, even if there is nothing to do.
            group.create_task(asyncio.Event().wait())

    async def _repeat(self, chore: Job) -> None:
        known = False

        async def turn() -> float:
            nonlocal known
            try:
                if not known:
                    first = min(chore.every, _FIRST)
                    await self.pool.execute(_KNOW, chore.name, first, chore.every)
                    known = True
                await self.do(chore)
            except TRANSIENT as trouble:
                _logger.warning("job_retrying", job=chore.name, reason=reason(trouble))
            return min(5.0, max(0.1, chore.every / 10))

        await background.repeat(turn, jitter=0.2)

    async def _share(self, chore: SharedJob) -> None:
        """One part at a time, however many are due: the others are for other workers."""
        parts = {part.name: part for part in map(chore.part, chore.parts)}
        known = False

        async def turn() -> float:
            nonlocal known
            try:
                if not known:
                    first = min(chore.every, _FIRST)
                    await self.pool.execute(_KNOW_ALL, list(parts), first, chore.every)
                    known = True
                due = await self.pool.fetch(_DUE_PARTS, list(parts), chore.every, _CHOICE)
                for row in random.sample(due, len(due)):  # so that not all workers want the same
                    if await self.do(parts[row["name"]]):
                        return 0.0
            except TRANSIENT as trouble:
                _logger.warning("job_retrying", job=chore.name, reason=reason(trouble))
            return min(5.0, max(0.1, chore.every / 10))

        await background.repeat(turn, jitter=0.2)

    async def do(self, chore: Job) -> bool:
        """Do it if it is due and free; whether it was done. Raises what Postgres does.

        A job that fails is logged and runs again later; the worker goes on.
        """
        taken = time.monotonic()
        due = await self.pool.fetchrow(
            _TAKE, chore.name, self.worker, self.lease, _IN_A_ROW, chore.every
        )
        if due is None:
            return False
        term = _Term(taken + self.lease * 0.9)
        keep = asyncio.create_task(self._keep(chore.name, term))
        try:
            came = await chore.work(term.holds)
        except (LeaseLost, *TRANSIENT) as trouble:
            came = JobResult({"failed": reason(trouble)}, unfinished=True)
            _logger.warning("job_failed", job=chore.name, reason=reason(trouble))
        except Exception as stumble:
            came = JobResult({"failed": type(stumble).__name__}, unfinished=True)
            tell = _logger.warning if is_transient(stumble) else _logger.error
            tell("job_failed", job=chore.name, error=type(stumble).__name__)
        finally:
            keep.cancel()
            await asyncio.gather(keep, return_exceptions=True)
        result, again = came.after(chore.every, due["unfinished"])
        told = json.dumps(result, default=str)
        await self.pool.execute(_DONE, chore.name, self.worker, told, again)
        return True

    async def _keep(self, name: str, term: "_Term") -> None:
        async def turn() -> float:
            before = time.monotonic()
            with contextlib.suppress(*TRANSIENT):
                mine = await self.pool.fetchval(_KEEP, name, self.worker, self.lease)
                # Once another took it for abandoned it is lost for good.
                term.until = before + self.lease * 0.9 if mine else 0.0
            return self.lease / 3

        await background.repeat(turn, first=self.lease / 3)


@dataclass(slots=True)
class _Term:
    """Until when the lease is certain, on this process's monotonic clock."""

    until: float

    def holds(self) -> bool:
        return time.monotonic() < self.until


_KNOW: Final = """
INSERT INTO evosaga.chores AS known (name, next_at)
VALUES ($1, now() + make_interval(secs => $2))
ON CONFLICT (name) DO UPDATE SET
    next_at = least(known.next_at, now() + make_interval(secs => $3))
"""
# Spread, so that the parts of a round do not all fall due at one moment.
_KNOW_ALL: Final = """
INSERT INTO evosaga.chores AS known (name, next_at)
SELECT name, now() + make_interval(secs => $2 * place / count(*) OVER ())
FROM unnest($1::text[]) WITH ORDINALITY AS part (name, place) ORDER BY name
ON CONFLICT (name) DO UPDATE SET
    next_at = least(known.next_at, now() + make_interval(secs => $3))
"""
_DUE_NOW: Final = """(next_at <= now() OR next_at > now() + make_interval(secs => {}) + {})"""
_DUE_PARTS: Final = f"""
SELECT name FROM evosaga.chores
WHERE name = ANY($1) AND {_DUE_NOW.format("$2", LEEWAY)} AND {vacant("chores")}
ORDER BY next_at LIMIT $3
"""  # noqa: S608  # constants only
_TAKE: Final = f"""
UPDATE evosaga.chores SET leader = $2, lease_until = now() + make_interval(secs => $3)
WHERE name = $1
  AND {_DUE_NOW.format("$5", LEEWAY)}
  AND {vacant("chores")}
RETURNING coalesce((last_result ->> $4::text)::int, 0) AS unfinished
"""  # noqa: S608  # constants only
_KEEP: Final = """
UPDATE evosaga.chores SET lease_until = now() + make_interval(secs => $3)
WHERE name = $1 AND leader = $2 RETURNING true
"""
_DONE: Final = """
UPDATE evosaga.chores SET leader = NULL, lease_until = NULL, last_run = now(),
    last_result = $3::jsonb, next_at = now() + make_interval(secs => $4)
WHERE name = $1 AND leader = $2
"""
