"""Rows for people: a table at a terminal, padded columns in a pipe."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from evosaga.orchestrator.cli.output import Output


def draw(rows: Sequence[Mapping[str, str]], out: Output, *, wrap: Sequence[str] = ()) -> None:
    """Every row has the same columns; those in ``wrap`` give way where a window is narrow."""
    if not rows:
        return
    safe = [{name: printable(value) for name, value in row.items()} for row in rows]
    if out.terminal:
        _table(safe, out, wrap)
        return
    heading = {name: name.upper() for name in rows[0]}
    widths = {name: max(len(row[name]) for row in (heading, *safe)) for name in heading}
    for row in (heading, *safe):
        out.line("  ".join(f"{row[name]:<{widths[name]}}" for name in widths).rstrip())


def printable(text: str) -> str:
    """Names come from other people's servers, and a terminal obeys escape sequences."""
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def _table(rows: Sequence[Mapping[str, str]], out: Output, wrap: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in rows[0]:
        folds = name in wrap
        table.add_column(
            name,
            no_wrap=not folds,
            ratio=1 if folds else None,
            overflow="fold" if folds else "crop",
        )
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    out.console.print(table)
