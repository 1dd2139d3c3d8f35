"""Pictures for a terminal, and the same in lines for a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.queries.timeline import (
    StepState,
    StepTimeline,
    detail,
    event_line,
    steps_of,
)
from evosaga.orchestrator.whatsapp.explain import note

if TYPE_CHECKING:
    from rich.table import Table

    from evosaga.events.model import Recorded
    from evosaga.orchestrator.cli.follow import Seen, Watch

MARKS: Final[dict[StepState, tuple[str, str]]] = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "held": ("…", "yellow"),
    "failed": ("✗", "red"),
    "undoing": ("↶", "cyan"),
    "undone": ("↶", "yellow"),
    "undo failed": ("✗", "bold red"),
}
COLOURS: Final = {
    "running": "cyan",
    "compensating": "yellow",
    "completed": "green",
    "compensated": "yellow",
    "failed": "bold red",
    "rejected": "magenta",
    "running, held": "yellow",
    "compensating, held": "yellow",
}


def steps_table(steps: Sequence[StepTimeline]) -> Table:
    """The steps of a saga, one a row."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for step in steps:
        mark, style = MARKS[step.state]
        tries = max(step.attempts, step.undo_attempts)
        said = f"{step.state}, attempt {tries}" if tries > 1 else step.state
        spent = f"{step.seconds:.2f} s" if step.seconds is not None else ""
        row = (f"  {mark}", step.name, said, spent, step.note)
        styles = (style, style, style, "dim", "dim")
        table.add_row(*(Text(t, style=s) for t, s in zip(row, styles, strict=True)))
    return table


@contextlib.contextmanager
def timeline(out: Output, names: Sequence[str] = ()) -> Iterator[Watch]:
    """Draw the steps as they happen; in a pipe a line an event, in JSON nothing.

    ``names`` are the steps of the saga, so that those to come are drawn, too.
    """
    if out.json:
        yield lambda seen, fresh: None
    elif not out.terminal:
        yield lambda seen, fresh: _tell(out, fresh)
    else:
        from rich.live import Live

        steps = [StepTimeline(name) for name in names]
        with Live(steps_table(steps), console=out.console, refresh_per_second=12) as live:

            def draw(seen: Seen, _: Sequence[Recorded]) -> None:
                ahead = names if seen.view and seen.view.status == "running" else ()
                live.update(steps_table(steps_of(seen.history, ahead, note)))

            yield draw


def _tell(out: Output, fresh: Sequence[Recorded]) -> None:
    for recorded in fresh:
        out.line(event_line(recorded, note))


class Progress(Protocol):
    """Called with how far it is; ``text`` says it in words."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


@contextlib.contextmanager
def progress_bar(what: str, out: Output) -> Iterator[Progress]:
    """A bar at a terminal, a line now and then in a pipe, nothing in JSON."""
    if out.terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bar(*columns, console=out.console, transient=True) as bar:
            task = bar.add_task(what, total=None)

            def draw(done: int, total: int, text: str = "") -> None:
                words = f"{what}: {text}" if text else what
                bar.update(task, completed=done, total=total, description=words)

            yield draw
        return
    said, said_at = "", time.monotonic()

    def say(done: int, total: int, text: str = "") -> None:
        nonlocal said, said_at
        words = text or f"{done} of {total}"
        if not out.json and words != said and time.monotonic() - said_at > _SAY_EVERY:
            said, said_at = words, time.monotonic()
            out.note(f"{what}: {words}")

    yield say


_SAY_EVERY: Final = 2.0


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values; a long value goes on below itself."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        style = COLOURS.get(value, "") if name == "status" else ""
        table.add_row(Text(f"{name:<12}", style="dim"), Text(value, style=style, overflow="fold"))
    return table


def draw_event(recorded: Recorded, out: Output) -> None:
    """One event; what it has to say goes on the next line where the window is narrow."""
    from rich.text import Text

    line = event_line(recorded, note)
    said = detail(recorded.event, note)
    held = getattr(recorded.event, "outcome", None) == "held"
    kind = "held" if held else recorded.event.type.rpartition(".")[2]
    style = _EVENT_COLOURS.get(kind, "")
    if len(line) <= out.console.width or not said:
        out.console.print(Text(line, style), no_wrap=True, overflow="ignore", crop=False)
        return
    head = line[: len(line) - len(said)].rstrip()
    out.console.print(Text(head, style), no_wrap=True, overflow="ignore", crop=False)
    out.wrapped(said, indent=19, style="dim")


_EVENT_COLOURS: Final = {
    "failed": "red",
    "held": "yellow",
    "began": "yellow",
    "completed": "green",
    "compensated": "yellow",
    "rejected": "magenta",
    "started": "dim",
}


def draw_qr(out: Output, code: str) -> None:
    """A QR code that a phone can scan: two rows of modules a line, dark on white."""
    import segno
    from rich.text import Text

    matrix = [list(row) for row in segno.make(code, error="l", micro=False).matrix_iter(border=2)]
    if len(matrix) % 2:
        matrix.append([0] * len(matrix[0]))
    blocks = {(0, 0): " ", (0, 1): "▄", (1, 0): "▀", (1, 1): "█"}
    for upper, lower in zip(matrix[::2], matrix[1::2], strict=True):
        line = "".join(blocks[u, d] for u, d in zip(upper, lower, strict=True))
        if out.terminal:
            out.console.print(Text(line, style="#000000 on #ffffff"), no_wrap=True)
        else:
            out.line(line)
