"""Variables that bear our prefix and that nothing reads, as ``evosaga doctor`` finds them.

What is misspelt is not refused at start, since another release may know it; but it changes
nothing, which is easy to overlook.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import AsyncGenerator, Iterable
from typing import Final

from evosaga.orchestrator.cli.check import Finding
from evosaga.orchestrator.cli.output import printable

_PREFIX: Final = "EVOSAGA_"
_BESIDE: Final = frozenset({"EVOSAGA_STATE_DIR", "EVOSAGA_LOCAL", "EVOSAGA_SYNC_POINTS"})
"""Those that are no settings of a deployment."""


async def check_variables() -> AsyncGenerator[Finding, None]:
    """One line for each that nothing reads, in the environment or in ``.env``."""
    from dotenv import dotenv_values

    from evosaga.orchestrator.config.dotenv import dotenv
    from evosaga.orchestrator.config.settings import Settings

    known = _BESIDE | {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields}
    beside = dotenv_values(path, encoding="utf-8-sig") if (path := dotenv()) else {}
    for name, meant in misspelt([*os.environ, *beside], known).items():
        cure = f"did you mean {meant}?" if meant else "evosaga VERB --help names those of a verb"
        yield Finding("variables", "warn", f"nothing reads {printable(name)}", cure)


def misspelt(names: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """The names with our prefix that are none of the known ones, and which may be meant. Pure."""
    spelt = sorted(known)
    found: dict[str, str | None] = {}
    for name in sorted(set(names)):
        said = name.upper()  # settings are found in any case
        if said.startswith(_PREFIX) and said not in spelt:
            close = difflib.get_close_matches(said, spelt, n=1, cutoff=0.85)
            found[name] = close[0] if close else None
    return found
