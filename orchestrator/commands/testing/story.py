"""A failed run as a story: what was chosen, what happened, and the line that repeats it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.commands.testing.explorer import Faults

if TYPE_CHECKING:
    from evosaga.orchestrator.commands.testing.torture import Stage

WORDS: Final = {
    "ok": "",
    "refused": "is refused, and nothing happens",
    "lost": "happens, and the answer gets lost",
    "late": "gets lost, and happens 15 s later",
    "crash before": "the worker dies before it",
    "crash": "happens, and the worker dies after the effect",
    "crash late": "the worker dies, and it happens 15 s later",
    "sleep before": "the worker is paused before it, and taken for dead",
    "sleep after": "happens, and the worker is paused and taken for dead",
    "doze": "happens, and the worker is paused briefly",
    "cancel": "a person cancels first",
    "cancel elsewhere": "a person cancels first, by way of another worker",
    "other first": "another worker is faster",
    "land": "what was lost before arrives first",
    "wake": "the paused worker wakes up first",
}
_MOST: Final = 60


def told(label: str, number: int, faults: Faults, stage: "Stage", wrong: Sequence[str]) -> str:
    """What is wrong, what happened, and how to see it again."""
    lines = [f"{label}: {wrong[0]}", *(f"    {one}" for one in wrong[1:]), "", "What happened:"]
    shown = [_line(one) for one in stage.trace]
    if len(shown) > _MOST:
        shown = [*shown[: _MOST // 2], "    …", *shown[-_MOST // 2 :]]
    which = f"{faults!r}{f', {number}' if number else ''}"
    again = f"Again: {label}.torture.repeat({which})"
    return "\n".join([*lines, *shown, "", again, f'   or: pytest --evosaga-repeat "{which}"'])


def _line(one: str) -> str:
    said, _, how = one.rpartition(": ")
    words = WORDS.get(how, how)
    parts = said.split(None, 3)
    what = parts[3] if parts[2] in ("call", "look") and len(parts) > 3 else f"{parts[2]}"
    return (
        f"  {'>>' if words else '  '} {parts[0]:>9} {parts[1]} {what}{': ' if words else ''}{words}"
    )
