"""The one way out: results to stdout, remarks to stderr, JSON when a program is listening."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.cli.trouble import WRONG, Trouble

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """Where a verb writes. ``terminal``: a person is watching stdout, so colours may be used."""

    def __init__(self, *, json: bool = False, debug: bool | None = None) -> None:
        self.json = json
        level = os.environ.get("EVOSAGA_LOG_LEVEL", "")
        self.debug = level.lower() == "debug" if debug is None else debug
        self.terminal = not json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """Rich's console on stdout; made when first used, since importing it takes a while."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=False)
        return self._console

    def line(self, text: str = "") -> None:
        """A line of plain text for whoever reads stdout."""
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, say
            _abandon(sys.stdout)
            raise Trouble(WRONG, f"the result can't be written: {error.strerror}") from error

    def data(self, document: Any) -> None:
        """A JSON document, on one line."""
        self.line(json.dumps(document, ensure_ascii=False, default=str))

    def note(self, text: str) -> None:
        """A remark that is no result; one that nobody reads changes nothing."""
        sys.stdout.flush()
        try:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        except OSError:
            _abandon(sys.stderr)

    def problem(self, sentence: str) -> None:
        """What went wrong, and the cure."""
        self.note(f"evosaga: {sentence}")

    def settle(self) -> None:
        """Write what is left to write; nobody may want it any more."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon(sys.stdout)


def _abandon(stream: TextIO) -> None:
    """Nobody reads it any more; keep the interpreter from stumbling over that at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
