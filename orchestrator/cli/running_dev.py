"""A running ``evosaga dev`` of this state folder: what it started, so that verbs find it.

``dev`` writes the file when everything is there and removes it at its end. Its lock, which dies
with its process, says whether the file still means anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evosaga.orchestrator.config.settings import Settings

LOCK: Final = "dev.lock"
_FILE: Final = "dev.json"
_GIVEN: Final = (
    *("EVOSAGA_DATABASE_URL", "DATABASE_URL", "EVOSAGA_REDIS_URL", "REDIS_URL"),
    *("EVOSAGA_EVOLUTION_URL", "EVOSAGA_EVOLUTION_SERVERS"),
)
"""Whoever sets one of these means other servers than those of ``dev``."""


@contextlib.contextmanager
def announced(folder: Path, facts: Mapping[str, str | None]) -> Iterator[None]:
    """The file with these settings, for as long as ``dev`` runs; for its owner alone."""
    number, temporary = tempfile.mkstemp(dir=folder, prefix=".dev-")  # with mode 600
    with os.fdopen(number, "w") as stream:
        json.dump({name: value for name, value in facts.items() if value}, stream)
    file = folder / _FILE
    os.replace(temporary, file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def found() -> dict[str, str]:
    """The settings of the one that runs; none where none does, or where others were given."""
    if any(os.environ.get(name) for name in _GIVEN):
        return {}
    from evosaga.orchestrator.local.paths import NoStateFolder, state_folder

    try:
        folder = state_folder()
        if not _locked(folder / LOCK):
            return {}
        told = json.loads((folder / _FILE).read_text())
        return {str(name): str(value) for name, value in told.items()}
    except (NoStateFolder, OSError, ValueError, AttributeError):
        return {}


def settings() -> Settings:
    """The settings of this process, completed by those of a running ``dev``."""
    from evosaga.orchestrator.config.settings import load_settings

    plain = load_settings()
    if plain.database_url or plain.redis_url or plain.evolution_url:
        return plain  # which ``.env`` may say
    told = {name: value for name, value in found().items() if name not in ("url", "api_key")}
    return load_settings(**told) if told else plain


def _locked(lock: Path) -> bool:
    """Whether a process holds it."""
    with lock.open("r") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
