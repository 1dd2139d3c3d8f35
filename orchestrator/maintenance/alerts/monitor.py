"""Opens and ends alerts: every process says what it sees in itself, one looks at the rest.

It runs in workers and in processes with the API alone, so that somebody is left to say that no
worker is.
"""

import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from evosaga.events import alerts, background
from evosaga.events.alerts import Condition, FindConditions
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.leader_election import Candidacy

_logger = structlog.get_logger("evosaga.alerts")
TICK: Final = 4.0
_LEASE: Final = 12.0
_SETTLED: Final = 90.0
"""Seconds that a leader leads before it takes a process's silence for good news."""
_FULL: Final = 0.95
_ENOUGH: Final = 5 * 1024**3
"""Free bytes with which no disk is near full, whatever its size."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is wrong now. ``codes``: those of alerts that could be looked into.

    Of these, what is not among the conditions is over.
    """

    conditions: Sequence[Condition]
    codes: Sequence[str]


@dataclass(slots=True)
class AlertMonitor:
    """One candidate for looking; ``own`` is what this process sees in itself.

    ``task``: what is led. A domain's conditions have a leader of their own, since not every process
    has that domain. ``hears``: it also ends what processes have stopped to report.
    """

    pool: Pool
    me: str
    look: Callable[[], Awaitable[Seen]]
    own: Callable[[], Sequence[Condition]] = lambda: ()
    task: str = "alerts"
    hears: bool = True
    tick: float = TICK
    _leads_since: float | None = field(default=None, init=False)

    async def run(self) -> None:
        """Look for ever; cancel it to stop. Trouble with the stores is waited out."""
        candidacy = Candidacy(self.pool, self.task, self.me, lease=_LEASE)

        async def turn() -> float:
            try:
                await alerts.observe(self.pool, self.own(), of_process=True)
                if await candidacy.held():
                    await self.round()
                else:
                    self._leads_since = None
            except TRANSIENT as trouble:
                _logger.warning("alerts_retrying", reason=reason(trouble))
            except Exception as stumble:  # no reason to stop a worker
                _logger.error("alerts_failed", error=type(stumble).__name__)
            return self.tick

        await background.repeat(turn)

    async def round(self) -> None:
        """Look once, and write down what changed."""
        now = time.monotonic()
        self._leads_since = self._leads_since or now
        seen = await self.look()
        await alerts.observe(self.pool, seen.conditions)
        settled = self.hears and now - self._leads_since > _SETTLED
        await alerts.resolve(self.pool, seen.conditions, seen.codes, settled=settled)


def domain_monitors(
    domains: Iterable[tuple[Sequence[str], FindConditions]],
    pool: Pool,
    me: str,
) -> list[AlertMonitor]:
    """One for each domain that has conditions, by its codes and what finds them.

    One that fails hides no other's trouble.
    """

    async def look(codes: Sequence[str], conditions: FindConditions) -> Seen:
        return Seen(await conditions(pool), codes)

    return [
        AlertMonitor(
            pool,
            me,
            partial(look, codes, conditions),
            task=f"alerts/{'/'.join(sorted(codes))}",
            hears=False,
        )
        for codes, conditions in domains
        if codes
    ]


def full_disks() -> list[Condition]:
    """The disks of this machine that are near full: what runs here can't write soon."""
    for place in {Path("/"), Path.home(), Path.cwd()}:
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        if usage.used >= _FULL * (usage.used + usage.free) and usage.free < _ENOUGH:
            host = socket.gethostname()
            return [
                Condition(
                    f"disk_full/{host}",
                    "disk_full",
                    f"a disk of {host} has {usage.free // 1024**2} MiB left",
                    "make room there; Postgres and Redis stop when they can't write",
                    "critical",
                    after=60.0,
                )
            ]
    return []
