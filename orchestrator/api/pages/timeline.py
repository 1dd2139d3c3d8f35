"""Lays out a saga's timeline: one row per step, time from left to right. Pure.

All positions are in percent of the width (``time_axis``), all texts plain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Final, Literal, TypeAlias

from evosaga.orchestrator.api.pages.attempts import Attempt, AttemptHistory, Ending, Mark
from evosaga.orchestrator.api.pages.time_axis import Scale, Tick, duration
from evosaga.orchestrator.queries.timeline import StepTimeline

Shape: TypeAlias = Literal["attempt", "wait"]


@dataclass(frozen=True, slots=True)
class Bar:
    """One period in a row. ``said`` describes it in a sentence."""

    x: float
    width: float
    shape: Shape
    ending: Ending
    backward: bool
    said: str
    worker: str = ""
    """The letter of the worker; empty when there was only one."""

    @property
    def end(self) -> float:
        return round(self.x + self.width, 2)


@dataclass(frozen=True, slots=True)
class Link:
    """The line from one attempt to the next: down is forward, up is back."""

    x: float
    upper: bool
    lower: bool


@dataclass(frozen=True, slots=True)
class Row:
    story: StepTimeline
    kind: str
    bars: tuple[Bar, ...]
    links: tuple[Link, ...]
    state: str
    spent: str
    """How long it took, or has taken so far."""


@dataclass(frozen=True, slots=True)
class PlacedMark:
    mark: Mark
    x: float


@dataclass(frozen=True, slots=True)
class Timeline:
    rows: tuple[Row, ...]
    marks: tuple[PlacedMark, ...]
    ticks: tuple[Tick, ...]
    workers: tuple[tuple[str, str], ...]
    """Letter and name, in order of appearance."""
    now: float | None
    """The position of the present; None once nothing more happens by itself."""


def timeline(
    told: AttemptHistory,
    stories: Sequence[StepTimeline],
    kinds: dict[str, str],
    *,
    now: datetime,
    over: bool,
    next_at: datetime | None,
) -> Timeline:
    """Lay out the timeline. ``now`` is the database's time, ``next_at`` when the saga continues."""
    scale = Scale(told, now=None if over else now, next_at=None if over else next_at)
    workers = told.workers
    letters = {name: _letter(n) for n, name in enumerate(workers)} if len(workers) > 1 else {}
    bars: dict[str, list[Bar]] = {story.name: [] for story in stories}
    for number, attempt in enumerate(told.attempts):
        following = told.attempts[number + 1] if number + 1 < len(told.attempts) else None
        bars.setdefault(attempt.step, []).extend(_bars(attempt, following, told, scale, letters))
    links = _links(told, [story.name for story in stories], scale)
    return Timeline(
        rows=tuple(
            Row(
                story,
                kinds.get(story.name, ""),
                tuple(bars[story.name]),
                tuple(links.get(story.name, ())),
                _state(story, over),
                _spent(story, None if over else now),
            )
            for story in stories
        ),
        marks=tuple(PlacedMark(mark, scale.of(mark.sequence)) for mark in told.marks),
        ticks=tuple(scale.ticks()),
        workers=tuple((letters.get(name, ""), name) for name in workers),
        now=scale.present,
    )


def _bars(
    attempt: Attempt,
    following: Attempt | None,
    told: AttemptHistory,
    scale: Scale,
    letters: dict[str, str],
) -> list[Bar]:
    """The attempt itself and, when the same step has to be retried, the wait after it."""
    backward = attempt.direction == "compensation"
    x = scale.of(attempt.first)
    end = scale.of(attempt.last) if attempt.ended is not None else scale.present
    width = max(0.7, round((end if end is not None else 100.0) - x, 2))
    bar = Bar(
        x=x,
        width=width,
        shape="wait" if attempt.ending == "held" else "attempt",
        ending=attempt.ending,
        backward=backward,
        said=sentence(attempt),
        worker=letters.get(attempt.worker, ""),
    )
    until = _wait_ends(attempt, following, told, scale)
    if until is None or until <= bar.end or attempt.ending in ("done", "out"):
        return [bar]
    if bar.shape == "wait":  # the attempt was only the beginning of the wait
        return [replace(bar, width=round(until - x, 2))]
    rest = round(until - bar.end, 2)
    said = "Waits before it tries again"
    return [bar, Bar(bar.end, rest, "wait", "unclear", backward, said)]


def _wait_ends(
    attempt: Attempt, following: Attempt | None, told: AttemptHistory, scale: Scale
) -> float | None:
    """Where the wait for a retry of the same step ends; None when there is no retry."""
    turned = any(
        mark.sequence > attempt.last
        and (following is None or mark.sequence < following.first)
        and mark.kind in ("turn", "park", "cancel", "done", "undone")
        for mark in told.marks
    )
    if turned:
        return None
    if following is None:
        return scale.ahead if scale.ahead is not None else scale.present
    same = (following.step, following.direction) == (attempt.step, attempt.direction)
    return scale.of(following.first) if same else None


def _links(told: AttemptHistory, names: Sequence[str], scale: Scale) -> dict[str, list[Link]]:
    """Thin vertical lines that connect the bars of different rows."""
    order = {name: row for row, name in enumerate(names)}
    links: dict[str, list[Link]] = {}
    for before, after in pairwise(told.attempts):
        if before.step == after.step or not {before.step, after.step} <= order.keys():
            continue
        x = scale.of(after.first)
        top, bottom = sorted((order[before.step], order[after.step]))
        for row in range(top, bottom + 1):
            links.setdefault(names[row], []).append(Link(x, row > top, row < bottom))
    return links


def _state(story: StepTimeline, over: bool) -> str:
    if story.state == "waiting":
        return "not begun" if over else "to come"
    return story.state


def _spent(story: StepTimeline, now: datetime | None) -> str:
    if story.began_at is None:
        return ""
    if now is not None and story.state in ("running", "held", "failed", "undoing", "undo failed"):
        return duration(max(0.0, (now - story.began_at).total_seconds()))
    return duration(story.seconds) if story.seconds is not None else ""


_SAID: Final[dict[Ending, str]] = {
    "done": "succeeded",
    "refused": "was refused, and nothing happened",
    "unclear": "ended unclear: it may have happened",
    "held": "was held, because something it needs was not there",
    "lost": "was lost with its worker",
    "out": "is under way",
}


def sentence(attempt: Attempt) -> str:
    """A period in words, for a tooltip and for screen readers."""
    what = "Undoing" if attempt.direction == "compensation" else "Attempt"
    number = f" {attempt.number}" if what == "Attempt" or attempt.number > 1 else ""
    spent = ""
    if attempt.ended is not None:
        spent = f" after {duration((attempt.ended - attempt.began).total_seconds())}"
    often = f", {attempt.times} times" if attempt.times > 1 else ""
    why = f": {attempt.message}" if attempt.message else ""
    said = f"{what} {attempt.step}{number} {_SAID[attempt.ending]}{often}{spent}{why}"
    return f"{said} (worker {attempt.worker})"


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"W{number + 1}"
