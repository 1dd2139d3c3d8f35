"""Sentences for people: wrapped to the window at a terminal, a line each in a pipe."""

from __future__ import annotations

import textwrap

from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.tables import printable


def write_wrapped(text: str, out: Output, *, indent: int = 0, style: str = "") -> None:
    """One sentence. ``indent`` is in columns; ids and commands are never broken."""
    safe, blank = printable(text), " " * indent
    if not out.terminal:
        out.line(blank + safe)
        return
    from rich.text import Text

    lines = textwrap.wrap(
        safe,
        out.console.width,
        initial_indent=blank,
        subsequent_indent=f"{blank}  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    for line in lines:
        out.console.print(Text(line, style), soft_wrap=True)
