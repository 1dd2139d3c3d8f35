"""Notices code of a saga that reads the wall clock, which no test can move."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Final

from evosaga.orchestrator.commands.testing.loop import ACTOR

_OURS: Final = frozenset({"evosaga", *sys.stdlib_module_names})


@contextlib.contextmanager
def clock_watched() -> Iterator[list[str]]:
    """Collects, inside, where a step called ``time.time``."""
    found: list[str] = []
    real = time.time

    def watched() -> float:
        frame = sys._getframe(1)
        file = frame.f_code.co_filename
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        ours = package in _OURS or "site-packages" in file
        if ACTOR.get() is not None and not ours:
            said = f"it reads the wall clock at {file}:{frame.f_lineno}; take ctx.age, or a clock "
            found[:] = [f"{said}that the world gives"]
        return real()

    time.time = watched
    try:
        yield found
    finally:
        time.time = real
