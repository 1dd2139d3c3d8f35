"""What the parts of a run share: what was asked for, all that is running, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from redis.asyncio import Redis

from evosaga.events.database import Pool
from tests.harness.chaos.evidence import Evidence
from tests.harness.chaos.nemesis import Nemesis
from tests.harness.chaos.plan import Plan
from tests.harness.chaos.publisher import Publisher
from tests.harness.chaos.topology import Topology
from tests.harness.chaos.watching import Watcher

Say: TypeAlias = Callable[[str], None]

FAULTY: Final = 0.75
"""Share of the time in which there are faults; the rest is for healing, resting and judging."""


@dataclass(frozen=True)
class Options:
    """What the command line says. ``minutes`` is the time aimed at for everything."""

    seed: int
    minutes: float
    sagas: int
    version: str
    workers: int = 4
    drills: int = 8
    """Workers that are killed in the end, when nothing else is wrong, to see how long it takes."""
    patience: float = 150.0
    """Seconds that the world may take to come to rest when all faults are over."""
    clustered: bool = False
    """On a Redis Cluster."""
    parallel: bool = False
    """Whether appends commit in parallel."""
    keep: Path | None = None
    """Where logs and journals are to stay."""


@dataclass(frozen=True)
class Stage:
    """All that is running."""

    options: Options
    topology: Topology
    pool: Pool
    redis: Redis
    plan: Plan
    publisher: Publisher
    nemesis: Nemesis
    watcher: Watcher
    say: Say


@dataclass
class Rest:
    """How the world came to rest. Seconds."""

    quiet_after: float | None = None
    """From the end of the faults until nothing was open any more; None: never, in its time."""
    replayed: int = 0
    repaired: int = 0
    """Drifts that the reconciler repaired once all was well."""
    drilled: dict[int, float] = field(default_factory=dict)
    """Workers that were killed in a healthy world: process id to UNIX seconds."""


@dataclass(frozen=True)
class Outcome:
    """All that the report and the verdict are made of."""

    plan: Plan
    evidence: Evidence
    nemesis: Nemesis
    publisher: Publisher
    watcher: Watcher
    topology: Topology
    rest: Rest
    logs: str
    seconds: float
