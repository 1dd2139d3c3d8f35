"""Processor time: what is left to compare when a machine is shared, and clocks mean nothing.

Read from ``/proc``; where there is none every reading is None, and so is what follows from it.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_AT_REST: Final = (3, 4)
"""The places of idle and iowait in a line of ``/proc/stat``."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds of processor time so far, of each group of processes and of the whole machine."""

    seconds: Mapping[str, float]
    machine: float
    at: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What lies between two readings: milliseconds an item, and how many cores were busy."""

    each: Mapping[str, float]
    busy: float


def read(groups: Mapping[str, list[int]]) -> Reading | None:
    """How much each group has used so far: these processes, and the children that they have."""
    try:
        seconds = {name: sum(map(_used, pids)) for name, pids in groups.items()}
        return Reading(seconds, _machine(), time.monotonic())
    except OSError:
        return None


def spent(before: Reading | None, after: Reading | None, count: int) -> Spent | None:
    """What was used in between, for each of ``count`` items."""
    if before is None or after is None:
        return None
    each = {
        name: (after.seconds[name] - used) * 1000 / count for name, used in before.seconds.items()
    }
    return Spent(each, (after.machine - before.machine) / (after.at - before.at))


def of_process(pid: int) -> float:
    """Seconds that one process has used by itself. Raises ``OSError`` where it can't be told."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _ticks()


def _used(pid: int) -> float:
    """A process with its children, those that have ended among them."""
    fields = _stat(pid)
    used = sum(int(ticks) for ticks in fields[11:15]) / _ticks()
    for task in (_PROC / str(pid) / "task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                used += of_process(int(child))
            except OSError:  # it ended this moment, and counts as the parent's from now on
                continue
    return used


def _machine() -> float:
    first = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    # Behind the eighth come guests, who are counted among the others already.
    busy = [int(ticks) for place, ticks in enumerate(first[:8]) if place not in _AT_REST]
    return sum(busy) / _ticks()


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may hold anything: the first of them is the state."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")
