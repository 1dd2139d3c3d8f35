"""``params`` for modules that are imported without parsing anything, as for ``evosaga worker``.

Its types stand in annotations alone, which cyclopts evaluates when it parses; cyclopts itself takes
a tenth of a worker's start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.params import *  # noqa: F403


def __getattr__(name: str) -> object:
    from evosaga.orchestrator.cli import params

    return getattr(params, name)
