"""The one way out: results to stdout, remarks to stderr, JSON when a program is listening."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from evosaga.orchestrator.cli.errors import WRONG, CliError

if TYPE_CHECKING:
    from rich.console import Console


def mend_streams() -> bool:
    """Make stdout and stderr fit to be written to; whether stdout was open.

    Closed ones lead nowhere from now on: the next file or connection would get their number, and
    whatever is printed. What the locale has no character for is written as an escape.
    """
    open_ = sys.stdout is not None
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if not _is_unicode(stream):
            with contextlib.suppress(AttributeError):  # a test's own stream
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return open_


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")


class Output:
    """Where a verb writes. ``terminal``: a person is watching stdout, so colours may be used."""

    def __init__(
        self, *, json: bool = False, debug: bool | None = None, open_: bool = True
    ) -> None:
        self.json = json
        self._open = open_
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
        if not self._open:
            raise CliError(WRONG, "the result can't be written: stdout is closed")
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, say
            _abandon(sys.stdout)
            raise CliError(WRONG, f"the result can't be written: {error.strerror}") from error

    def data(self, document: Any) -> None:
        """A JSON document, on one line; in plain ASCII where stdout takes nothing else."""
        ascii_ = not _is_unicode(sys.stdout)
        self.line(json.dumps(document, ensure_ascii=ascii_, default=str))

    def written(self, document: str) -> None:
        """The same, of a document that is JSON already."""
        if _is_unicode(sys.stdout) or document.isascii():
            self.line(document)
        else:
            self.data(json.loads(document))

    def note(self, text: str) -> None:
        """A remark that is no result; one that nobody reads changes nothing."""
        self.settle()
        try:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        except OSError:
            _abandon(sys.stderr)

    def problem(self, sentence: str) -> None:
        """What went wrong, and the cure."""
        self.note(f"evosaga: {sentence}")

    def settle(self) -> OSError | None:
        """Write what is left to write; why that could not be done, but for nobody's wanting it."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon(sys.stdout)
        except OSError as error:
            _abandon(sys.stdout)
            return error
        return None


def _abandon(stream: TextIO) -> None:
    """Nobody reads it any more; keep the interpreter from stumbling over that at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
