"""A watchdog for the event loop: which step keeps it to itself, for how long, and where.

A step that blocks (a client that is not async, a long computation) stops everything else in its
worker: other sagas, heartbeats, HTTP. It can't be told from the loop itself, so a thread looks at
it from outside, and samples the stack of the loop's thread while a task does not come back.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType
from typing import Final

import structlog

from evosaga.events.alerts import Condition

_logger = structlog.get_logger("evosaga.blocking")
SLOW: Final = 0.5
"""Seconds that the loop may be kept before it is said."""
ALERTED: Final = 1.0
"""Seconds, within ``_LATELY``, for which one step must have kept it to be an alert."""
_LATELY: Final = 300.0
CURE: Final = "await an async client, or run it in a thread: await asyncio.to_thread(...)"
_BEAT: Final = 0.1
_SHOWN: Final = 8
"""Frames of the stack that are told, innermost last."""


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a task of the engine is at: words of definitions and the saga's id."""

    saga_id: str
    saga: str
    step: str


@dataclass(frozen=True, slots=True)
class _Block:
    """A time for which the loop was kept. ``ended``: monotonic seconds."""

    ended: float
    seconds: float
    names: tuple[str, str]
    where: str


class LoopWatchdog:
    """Of the running loop. ``at_work`` is asked, from another thread, what a task of that name is.

    ``blocked``: seconds by saga and step for which the loop was kept; what is no step of a saga
    has ``-`` for both.
    """

    def __init__(self, at_work: Callable[[str], AtWork | None], slow: float = SLOW) -> None:
        self.blocked: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._at_work = at_work
        self._slow = slow
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        self._beat_at = time.monotonic()
        self._stopped = threading.Event()
        self._told: tuple[float, AtWork | None, str] | None = None
        self._lately: list[_Block] = []

    async def run(self) -> None:
        """Watch until it is cancelled."""
        thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        thread.start()
        try:
            while True:
                self._note()
                self._beat_at = time.monotonic()
                await asyncio.sleep(_BEAT)
        finally:
            self._stopped.set()

    def _note(self) -> None:
        """The loop goes on again: say for how long it did not, if that was told."""
        if (told := self._told) is None:
            return
        self._told = None
        since, work, where = told
        now = time.monotonic()
        seconds = now - since - _BEAT
        names = (work.saga, work.step) if work else ("-", "-")
        self.blocked[names] += seconds
        self._lately.append(_Block(now, seconds, names, where))
        _logger.warning("event loop free again", seconds=round(seconds, 2), at=where, **_who(work))

    def conditions(self) -> list[Condition]:
        """An alert for each step that kept the loop for long enough lately."""
        since = time.monotonic() - _LATELY
        self._lately = [one for one in self._lately if one.ended > since]
        by_step: defaultdict[tuple[str, str], list[_Block]] = defaultdict(list)
        for one in self._lately:
            by_step[one.names].append(one)
        return [
            _condition(names, blocks)
            for names, blocks in by_step.items()
            if names != ("-", "-") and sum(one.seconds for one in blocks) >= ALERTED
        ]

    def _watch(self) -> None:
        while True:
            before = time.monotonic()
            if self._stopped.wait(_BEAT):
                return
            if time.monotonic() - before > self._slow / 2:
                continue  # the whole process had no CPU, or was stopped: that is no step's fault
            since = self._beat_at
            late = time.monotonic() - since - _BEAT
            if late < self._slow or self._told is not None:
                continue
            frame = sys._current_frames().get(self._thread_of_loop)
            task = asyncio.current_task(self._loop)
            if frame is None or task is None or since != self._beat_at:
                continue
            stack, work = _stack(frame), self._at_work(task.get_name())
            self._told = (since, work, stack[-1] if stack else "")
            _logger.warning(
                "a step blocks the event loop" if work else "the event loop is blocked",
                seconds=round(late, 2),
                at=stack[-1] if stack else "",
                frames=stack,
                cure=CURE,
                **_who(work),
            )


def _condition(names: tuple[str, str], blocks: list[_Block]) -> Condition:
    """Names, seconds and a line of code; never a value."""
    (saga, step), where = names, blocks[-1].where
    longest = max(one.seconds for one in blocks)
    times = "once" if len(blocks) == 1 else f"{len(blocks)} times"
    return Condition(
        f"loop_blocked/{saga}/{step}",
        "loop_blocked",
        f"the step {step} of {saga} blocks the event loop: {times} within 5 minutes, for up to"
        f" {longest:.1f} s, at {where}",
        CURE,
        after=0.0,
        data={"saga": saga, "step": step, "seconds": round(longest, 1), "at": where},
    )


def _who(work: AtWork | None) -> dict[str, str]:
    return {"saga_id": work.saga_id, "saga": work.saga, "step": work.step} if work else {}


def _stack(frame: FrameType) -> list[str]:
    """Files, lines and functions below the event loop; never a value."""
    found = [
        f"{'/'.join(PurePath(one.filename).parts[-2:])}:{one.lineno} {one.name}"
        for one in traceback.extract_stack(frame)
        if "asyncio" not in PurePath(one.filename).parts
    ]
    return found[-_SHOWN:]
