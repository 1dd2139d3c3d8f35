"""Fault injection for tests: named points where a process can be killed, stopped, failed or hung.

A sync point is one line of the product::

    await syncpoints.reach("eff.post", "evolution")

Unless ``EVOSAGA_SYNC_POINTS`` is set it only reads an empty dict. The variable holds a JSON list
of armed points::

    [{"at": "eff.post:evolution", "do": "kill", "nth": 2, "once": "/tmp/was-here"}]

``at`` is a point, with or without the step; ``nth`` is the time it is reached at which it fires
(1); ``once`` names a file that is created when it fires: while the file exists it does not fire
again, so that a restarted worker continues. ``do`` is one of

    kill    SIGKILL to this process
    stop    SIGSTOP to this process, until SIGCONT; then its lease may have ended
    raise   raise ``Struck``
    hang    never return, while the rest of the process continues

The points, in the order in which a saga reaches them: ``cmd.read``, ``acc.pre`` (in the accepting
transaction), ``acc.post``, ``ack.post``; for each step ``start.post`` (claimed, nothing sent),
``eff.post`` (done, nothing recorded) and ``out.post`` (recorded); the same three with ``comp.`` in
front when a step is undone; and ``rel.read`` ``rel.xadd`` ``rel.mark``, each after what it names.
A step that joins a commit has only ``out.post``. ``api.pre`` ``api.post`` are before and
after the accepting transaction of an HTTP command, ``wh.pre`` ``wh.post`` before and after the
storing of a webhook.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from evosaga.events.model import (
    CompensationFailed,
    CompensationSucceeded,
    SagaEvent,
    StepFailed,
    StepSucceeded,
)

VARIABLE: Final = "EVOSAGA_SYNC_POINTS"
_ACTIONS: Final = ("kill", "stop", "raise", "hang")
_FIELDS: Final = frozenset({"at", "do", "nth", "once"})


class Struck(Exception):
    """An armed sync point with the action ``raise`` was reached; only tests arm points."""


@dataclass(slots=True)
class _Armed:
    do: str
    nth: int = 1
    once: str | None = None
    reached: int = 0

    def strikes(self) -> bool:
        self.reached += 1
        if self.reached != self.nth:
            return False
        if self.once is None:
            return True
        try:  # of several workers on one machine only the first fires
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True


_armed: dict[str, list[_Armed]] = {}


def arm(wanted: Iterable[Mapping[str, Any]]) -> None:
    """Arm these points, and disarm all others. Raises ``ValueError``."""
    found: dict[str, list[_Armed]] = {}
    for entry in wanted:
        if unknown := sorted(entry.keys() - _FIELDS):
            raise ValueError(f"{VARIABLE}: unknown field {unknown[0]!r}")
        if entry.get("do") not in _ACTIONS:
            raise ValueError(f"{VARIABLE}: do must be one of {', '.join(_ACTIONS)}")
        one = _Armed(entry["do"], int(entry.get("nth", 1)), entry.get("once"))
        found.setdefault(str(entry["at"]), []).append(one)
    _armed.clear()
    _armed.update(found)


def arm_from_environment() -> None:
    """Arm the points in ``EVOSAGA_SYNC_POINTS``, if it is set. Raises ``ValueError``."""
    arm(json.loads(os.environ.get(VARIABLE) or "[]"))


async def reach(point: str, step: str = "", *, undoing: bool = False) -> None:
    """Mark that the process has reached the point; does nothing unless the point is armed."""
    if not _armed:
        return
    name = f"comp.{point}" if undoing else point
    for at in (name, f"{name}:{step}"):
        for armed in _armed.get(at, ()):
            if armed.strikes():
                await _strike(armed.do, f"{name}:{step}" if step else name)


async def recorded(events: Sequence[SagaEvent]) -> None:
    """``out.post`` of every step whose outcome is among the events."""
    if not _armed:
        return
    for event in events:
        if isinstance(event, StepSucceeded | StepFailed):
            await reach("out.post", event.step)
        elif isinstance(event, CompensationSucceeded | CompensationFailed):
            await reach("out.post", event.step, undoing=True)


async def _strike(do: str, where: str) -> None:
    match do:
        case "kill":
            _end()
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise Struck(f"the sync point {where} was told to raise")
        case _:
            await asyncio.get_running_loop().create_future()


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


arm_from_environment()
