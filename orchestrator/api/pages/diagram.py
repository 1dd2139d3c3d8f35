"""A saga's definition as a drawing: forward is down, compensation is up. Pure; in pixels.

The steps form a column. The way forward runs on the left; on the right, from every step that can be
undone, the way back. A line across marks the point of no return.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evosaga.orchestrator.api.pages.saga_view import KINDS
from evosaga.sagas.conflicts import in_words
from evosaga.sagas.definition import InCommit, Kind, Saga, Step

WIDTH: Final = 340
_TOP: Final = 44
_PITCH: Final = 84
_BOX: Final = 64


@dataclass(frozen=True, slots=True)
class Box:
    """One step. ``undo`` is empty when it cannot be undone."""

    name: str
    kind: str
    meaning: str
    does: str
    undo: str
    in_commit: bool
    retry: str
    y: int

    @property
    def middle(self) -> int:
        return self.y + _BOX // 2

    @property
    def bottom(self) -> int:
        return self.y + _BOX


@dataclass(frozen=True, slots=True)
class Diagram:
    """``no_return`` is the position of the line, None when every step can be undone."""

    name: str
    version: int
    command: str
    about: str
    beside: str
    """What becomes of a command whose business key is taken; empty: it has none."""
    boxes: Sequence[Box]
    height: int
    no_return: int | None
    box_height: int = _BOX
    width: int = WIDTH

    @property
    def undoable(self) -> Sequence[Box]:
        return [box for box in self.boxes if box.undo]


def diagram(saga: Saga) -> Diagram:
    """Draw one version of a saga."""
    boxes = [_box(step, _TOP + n * _PITCH) for n, step in enumerate(saga.steps)]
    behind = [n for n, step in enumerate(saga.steps) if step.kind is not Kind.COMPENSATABLE]
    cut = None
    if behind:
        pivot = saga.steps[behind[0]].kind is Kind.PIVOT
        # Until its own success even a pivot can be followed by compensation.
        cut = boxes[behind[0]].bottom + 11 if pivot else boxes[behind[0]].y - 11
    return Diagram(
        name=saga.name,
        version=saga.version,
        command=saga.command,
        about=_about(saga),
        beside=in_words(saga.on_conflict) if saga.admit or saga.business_key else "",
        boxes=boxes,
        height=_TOP + len(boxes) * _PITCH + 26,
        no_return=cut,
    )


def _box(step: Step, y: int) -> Box:
    seconds = f"{step.timeout:g} s each"
    undone = f"; its undo {step.undo_retry.attempts}" if step.undo_retry is not None else ""
    tries = "1 attempt" if step.retry.attempts == 1 else f"{step.retry.attempts} attempts"
    return Box(
        name=step.name,
        kind=str(step.kind),
        meaning=KINDS[step.kind],
        does=_effect(step.do),
        undo=_effect(step.undo) if step.undo else "",
        in_commit=isinstance(step.do, InCommit),
        retry=f"{tries}, {seconds}{undone}{''.join(f'; at {one}' for one in step.limits)}",
        y=y,
    )


def _effect(effect: object) -> str:
    """The function's name in the code; for a generated function, the name of its maker."""
    run = effect.run if isinstance(effect, InCommit) else effect
    return getattr(run, "__qualname__", type(run).__name__).partition(".<locals>")[0]


def _about(saga: Saga) -> str:
    """The docstring of the command's input model, if any."""
    said = (saga.input.__doc__ or "").strip()
    return said.splitlines()[0] if said else ""
