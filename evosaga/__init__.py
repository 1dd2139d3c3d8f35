"""evosaga: sagas recorded in an event log, started by commands, undone when they fail.

Here is what a definition of your own needs. The four packages it mounts (``evosaga.events``,
``evosaga.sagas``, ``evosaga.orchestrator``, ``evosaga.migrations``) are the folders of the same
names beside this one; ``docs/architecture.md`` says what is where.
"""

from evosaga.sagas.definition import InCommit, Retry, Saga, Step, compensatable, pivot, retryable
from evosaga.sagas.outcome import Done, Held, Outcome, Rejected, Unknown

__all__ = [
    "Done",
    "Held",
    "InCommit",
    "Outcome",
    "Rejected",
    "Retry",
    "Saga",
    "Step",
    "Unknown",
    "compensatable",
    "pivot",
    "retryable",
]
