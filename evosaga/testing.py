"""Testing sagas of your own: ``given`` for what comes next, ``run`` for one run in virtual time,
and ``torture`` for everything that can go wrong. ``docs/your-own-saga.md`` shows them at work.
"""

from evosaga.orchestrator.commands.testing.explorer import Broken
from evosaga.orchestrator.commands.testing.histories import (
    CANCEL,
    REPLAY,
    compensated,
    completed,
    done,
    given,
    held,
    lost,
    parked,
    refused,
    rejected,
    runs,
    supersedes,
    undoes,
    unknown,
    waits,
)
from evosaga.orchestrator.commands.testing.torture import Torture, torture
from evosaga.orchestrator.commands.testing.virtual import Ended, run

__all__ = [
    "CANCEL",
    "REPLAY",
    "Broken",
    "Ended",
    "Torture",
    "compensated",
    "completed",
    "done",
    "given",
    "held",
    "lost",
    "parked",
    "refused",
    "rejected",
    "run",
    "runs",
    "supersedes",
    "torture",
    "undoes",
    "unknown",
    "waits",
]
