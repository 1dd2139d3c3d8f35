"""Where verbs write: results to stdout, remarks to stderr, JSON when a program is listening."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from evosaga.orchestrator.cli.errors import WRONG, CliError

if TYPE_CHECKING:
    from rich.console import Console

_ENOUGH: Final = 32
"""Columns of a window that are enough for a text that can be folded or cut."""
_ENDLESS: Final = 1_000_000
"""Columns of a line in a pipe."""


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
        """A line of plain text on stdout. Raises ``CliError`` when it can't be written."""
        if not self._open:
            raise CliError(WRONG, "nothing can be shown: stdout is closed")
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, say
            _abandon(sys.stdout)
            raise CliError(WRONG, f"stdout can't be written to: {error.strerror}") from error

    def wrapped(self, text: str, *, indent: int = 0, style: str = "") -> None:
        """A sentence: wrapped to the window at a terminal, one line in a pipe.

        ``indent`` is in columns. Ids and commands are never broken.
        """
        safe, blank = printable(text), " " * indent
        if not self.terminal:
            self.line(blank + safe)
            return
        from rich.text import Text

        lines = textwrap.wrap(
            safe,
            self.console.width,
            initial_indent=blank,
            subsequent_indent=f"{blank}  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        for line in lines:
            self.console.print(Text(line, style), soft_wrap=True)

    def table(
        self,
        rows: Sequence[Mapping[str, str]],
        *,
        wrap: Collection[str] = (),
        spare: Sequence[str] = (),
        styles: Mapping[str, str] | None = None,
    ) -> None:
        """Rows that all have the same columns. In a pipe every line is as long as it must be.

        In a narrow window the columns in ``wrap`` are folded, those in ``spare`` left out (the
        last one first), and the last one is cut; where that is not enough each row is a card, since
        an id is never cut. ``styles`` are by value.
        """
        if not rows:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        names, room = self._columns(rows, wrap, spare) if self.terminal else (list(rows[0]), None)
        if not names:
            self._cards(rows, styles or {})
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for name in names:
            folds = name in wrap and self.terminal
            last = name == names[-1] and not folds
            table.add_column(
                name.upper(),
                no_wrap=not folds,
                overflow="fold" if folds else "ellipsis",
                max_width=room if last else None,
            )
        for row in rows:
            texts = ((printable(row[name]), (styles or {}).get(row[name], "")) for name in names)
            table.add_row(*(Text(text, style) for text, style in texts))
        if self.terminal:
            self.console.print(table)
            return
        for line in Console(width=_ENDLESS, color_system=None).render_lines(table, pad=False):
            self.line("".join(segment.text for segment in line).rstrip())

    def _columns(
        self, rows: Sequence[Mapping[str, str]], wrap: Collection[str], spare: Sequence[str]
    ) -> tuple[list[str], int]:
        """The columns that the window has room for, and how much of it the last one gets.

        None when even those that are needed have no room.
        """
        from rich.cells import cell_len

        window = self.console.width
        widths = {
            name: 2 + max(cell_len(row[name]) for row in (*rows, {name: name})) for name in rows[0]
        }
        for name in {*wrap, [*widths][-1]}:
            widths[name] = min(widths[name], _ENOUGH)
        for name in reversed(spare):
            if sum(widths.values()) > window:
                del widths[name]
        if sum(widths.values()) > window:
            return [], 0
        *others, last = widths
        return [*widths], max(window - sum(widths[name] for name in others), len(last))

    def _cards(self, rows: Sequence[Mapping[str, str]], styles: Mapping[str, str]) -> None:
        """Each row as lines of ``name: value``; no word of them is broken."""
        for number, row in enumerate(rows):
            if number:
                self.line()
            for name, value in row.items():
                if value:
                    self.fact(name, value, styles.get(value, ""))

    def fact(self, name: str, value: str, style: str = "") -> None:
        """A name and its value, on one line or, where the window is narrow, on two.

        No word of the value is broken.
        """
        head = f"{name}:"
        longest = max((len(word) for word in value.split()), default=0)
        if len(head) + 2 + max(longest, min(len(value), _ENOUGH)) > self.console.width:
            self.wrapped(head, style="dim")
            self.wrapped(value, indent=2, style=style)
            return
        self.wrapped(f"{head}  {value}", style=style)

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
        """A remark on stderr; a reader that is gone changes nothing.

        It may quote what a server said.
        """
        self.settle()
        safe = "\n".join(map(printable, text.split("\n")))
        try:
            sys.stderr.write(f"{safe}\n")
            sys.stderr.flush()
        except OSError:
            _abandon(sys.stderr)

    def problem(self, sentence: str) -> None:
        """What went wrong, and the cure."""
        self.note(f"evosaga: {sentence}")

    def settle(self) -> OSError | None:
        """Flush stdout; the error, unless the reader is gone."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _abandon(sys.stdout)
        except OSError as error:
            _abandon(sys.stdout)
            return error
        return None


def printable(text: str) -> str:
    """The text without the control characters that a terminal would obey."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def _abandon(stream: TextIO) -> None:
    """Point it at nothing, so that the interpreter's last flush does not fail."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
