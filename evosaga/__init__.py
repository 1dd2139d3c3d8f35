"""evosaga: sagas recorded in an event log, started by commands, undone when they fail.

Here is what a definition of your own needs. The four packages it mounts (``evosaga.events``,
``evosaga.sagas``, ``evosaga.orchestrator``, ``evosaga.migrations``) are the folders of the same
names beside this one; ``docs/architecture.md`` says what is where.
"""

from typing import TYPE_CHECKING

from evosaga.events import optional_imports

optional_imports.install()

if TYPE_CHECKING:
    from evosaga.orchestrator.domain import domain
    from evosaga.sagas.command import Command
    from evosaga.sagas.context import StepContext
    from evosaga.sagas.definition import (
        Admission,
        InCommit,
        Refusal,
        Retry,
        Saga,
        Step,
        compensatable,
        pivot,
        retryable,
    )
    from evosaga.sagas.limits import Limit
    from evosaga.sagas.outcome import (
        Done,
        Finding,
        Held,
        Outcome,
        Rejected,
        Sighting,
        Unknown,
    )

__all__ = [
    "Admission",
    "Command",
    "Done",
    "Finding",
    "Held",
    "InCommit",
    "Limit",
    "Outcome",
    "Refusal",
    "Rejected",
    "Retry",
    "Saga",
    "Sighting",
    "Step",
    "StepContext",
    "Unknown",
    "compensatable",
    "domain",
    "pivot",
    "retryable",
]

_ELSEWHERE = {
    "Command": "evosaga.sagas.command",
    "Limit": "evosaga.sagas.limits",
    "StepContext": "evosaga.sagas.context",
    "domain": "evosaga.orchestrator.domain",
    **dict.fromkeys(
        ("Done", "Finding", "Held", "Outcome", "Rejected", "Sighting", "Unknown"),
        "evosaga.sagas.outcome",
    ),
}


def __getattr__(name: str) -> object:
    """Import a name when it is first used: `evosaga --help` needs none of them."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "evosaga.sagas.definition")), name)
