"""Several workers on one machine: a parent that starts them, and starts again what dies.

Python uses one core a process. The parent opens no connection and runs no saga. Its children are
forked once everything is imported, so they share that memory, and each is a worker of its own. One
that dies is started again after a pause that grows while it dies soon. The first SIGTERM or SIGINT
is handed on to the children, which stop gracefully; the second ends them at once. When the parent
is killed the children stop, gracefully, since the kernel tells them (on Linux).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

import structlog

from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG
from evosaga.orchestrator.local.os_support import end_with_parent

_logger = structlog.get_logger("evosaga.processes")
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_POLL: Final = 0.1
_SOON: Final = 10.0
"""A child that ends sooner than after so many seconds was not well at all."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


@dataclass(slots=True)
class _Child:
    """One place of so many, and the process in it. Times are monotonic seconds."""

    number: int
    pid: int | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    pause: float = _FIRST_PAUSE

    def ended(self, now: float) -> None:
        """Its process is gone: when the next one is due."""
        self.pid = None
        lived = now - self.started_at
        self.pause = min(_LONGEST_PAUSE, self.pause * 2) if lived < _SOON else _FIRST_PAUSE
        self.due_at = now + self.pause


@dataclass(slots=True)
class Processes:
    """``run``: what the child of that number does; its exit code."""

    number: int
    run: Callable[[int], int]
    _children: list[_Child] = field(default_factory=list)
    _signals: int = 0
    _told: int = 0
    _ran: bool = False
    _code: int = DONE

    def supervise(self) -> int:
        """Until all children have ended after a signal; the exit code.

        A child that ends with wrong usage or settings ends all, since each would only do so again,
        unless one has run for a while: then they can run, and what is wrong came later.
        """
        self._children = [_Child(number) for number in range(self.number)]
        before = {number: signal.signal(number, self._signalled) for number in _STOPPING}
        try:
            gc.freeze()  # what is imported is shared by all children as long as none writes to it
            while True:
                self._start_what_is_due()
                self._hand_on()
                if self._signals and all(child.pid is None for child in self._children):
                    return self._code
                time.sleep(_POLL)
                self._reap()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, _number: int, _frame: object) -> None:
        self._signals += 1

    def _start_what_is_due(self) -> None:
        for child in self._children:
            if child.pid is None and not self._signals and time.monotonic() >= child.due_at:
                self._start(child)

    def _start(self, child: _Child) -> None:
        ends = end_with_parent(signal.SIGTERM)
        sys.stdout.flush()
        sys.stderr.flush()
        child.started_at = time.monotonic()
        # One that comes in between waits, or the child would take it with the parent's handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            child.pid = os.fork()
            if not child.pid:
                self._be(child.number, ends)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        _logger.info("process started", number=child.number, pid=child.pid)

    def _be(self, number: int, ends: Callable[[], None] | None) -> NoReturn:
        """What the child does. Never returns, or it would go on as the parent does."""
        code = UNFINISHED
        try:
            # Of its own group, or Ctrl-C would reach it twice: from the terminal and from us.
            os.setpgid(0, 0)
            for stopping in _STOPPING:
                signal.signal(stopping, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            if ends is not None:
                ends()
            code = self.run(number)
        except BaseException:
            _logger.exception("process broke", number=number)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _hand_on(self) -> None:
        """Tell the children of each signal; of the second one at once."""
        while self._told < self._signals:
            self._told += 1
            for child in self._children:
                if child.pid is not None:
                    _signal(child.pid, signal.SIGTERM if self._told == 1 else signal.SIGKILL)

    def _any_ran(self, now: float) -> bool:
        """Whether one has ever run for a while."""
        return self._ran or any(
            one.pid is not None and now - one.started_at >= _SOON for one in self._children
        )

    def _reap(self) -> None:
        for child in self._children:
            if child.pid is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            code = os.waitstatus_to_exitcode(status)
            gone, now = child.pid, time.monotonic()
            self._ran = self._ran or now - child.started_at >= _SOON
            child.ended(now)
            if self._signals:
                continue
            if code == WRONG and not self._any_ran(now):
                _logger.error("process refused to start", number=child.number, pid=gone)
                self._code, self._signals = WRONG, 1
                continue
            _logger.error(
                "process died", number=child.number, pid=gone, code=code, again_in=child.pause
            )


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
