"""evosaga: sagas recorded in an event log, started by commands, undone when they fail.

Here is what a definition of your own needs. The four packages it mounts (``evosaga.events``,
``evosaga.sagas``, ``evosaga.orchestrator``, ``evosaga.migrations``) are the folders of the same
names beside this one; ``docs/architecture.md`` says what is where.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evosaga.sagas.definition import (
        InCommit,
        Retry,
        Saga,
        Step,
        compensatable,
        pivot,
        retryable,
    )
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

_OUTCOMES = ("Done", "Held", "Outcome", "Rejected", "Unknown")


def __getattr__(name: str) -> object:
    """Import a name when it is first used: `evosaga --help` needs none of them."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "evosaga.sagas.outcome" if name in _OUTCOMES else "evosaga.sagas.definition"
    return getattr(import_module(module), name)
