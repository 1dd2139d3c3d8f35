"""Walking through every way a run can go wrong, up to a number of faults.

Stateless model checking: a run is told by its faults, a list of (question, answer), and every
other question is answered with "ok"; the same list gives the same run. The run without a fault
says where faults are possible, each run with one says where a second is, and so on: so every
single fault at every place, and every pair of them, is tried once.

A run that breaks a law raises ``Broken``.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from evosaga.orchestrator.commands.testing.loop import entered
from evosaga.orchestrator.commands.testing.scene import Scene

Faults: TypeAlias = tuple[tuple[int, str], ...]
Mine: TypeAlias = Callable[[int, str], bool]
Choose: TypeAlias = Callable[[str, list[str]], str]


_TOLD: Final = 60
"""So many of the last events of a run that went wrong are printed."""


class Broken(AssertionError):
    """A run in which a law was broken, with all that is needed to see it again."""


class Changed(AssertionError):
    """The same faults gave another run: something in it is not deterministic."""


@dataclass(frozen=True)
class Run:
    """What one run came to."""

    faults: Faults
    questions: tuple[tuple[str, ...], ...]
    notes: Counter[str]
    histories: int
    """A hash of all that was recorded."""
    ending: tuple[str, ...]


@dataclass
class Tally:
    """What an exploration saw."""

    runs: int = 0
    histories: set[int] = field(default_factory=set)
    endings: Counter[tuple[str, ...]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, run: Run) -> None:
        self.runs += 1
        self.histories.add(run.histories)
        self.endings[run.ending] += 1
        self.notes += Counter(what for what, times in run.notes.items() if times)


SceneT = TypeVar("SceneT", bound=Scene)


def play(
    make: Callable[[Choose], SceneT],
    faults: Faults,
    prepare: Callable[[SceneT], None],
    judge: Callable[[SceneT], list[str]],
    *loggers: str,
) -> tuple[SceneT, Run, list[str]]:
    """One run and what is wrong with it; ``loggers``: modules to be quiet. Raises ``Changed``."""
    asked: list[tuple[str, ...]] = []
    answers = dict(faults)

    def choose(kind: str, options: list[str]) -> str:
        how = answers.get(len(asked), "ok")
        if how not in options:
            raise Changed(f"the run has changed: no {how} at {len(asked)}, only {options}")
        asked.append((kind, *options))
        return how

    scene = make(choose)
    with entered(scene.loop), quiet(scene, *loggers):
        try:
            prepare(scene)
            scene.loop.run()
            heal(scene)
            wrong = judge(scene)
        except Changed as changed:
            raise Changed("\n  ".join([str(changed), *scene.trace[-_TOLD:]])) from None
        finally:
            scene.loop.bury()
    return scene, Run(faults, tuple(asked), scene.notes, _print(scene), _ending(scene)), wrong


def heal(scene: Scene) -> None:
    """Nothing goes wrong any more, and people replay what is parked."""
    scene.calm = True
    for _ in range(3):
        parked = [s.saga_id for s in scene.database.sagas.values() if s.row.status == "failed"]
        if parked:
            scene.notes["parked"] += len(parked)
        for saga_id in parked:
            scene.steer("saga.replay", saga_id, scene.awake()[0])
        scene.reconcile()
        scene.loop.run()


def runs(
    one: Callable[[Faults], Run],
    depth: int,
    *,
    mine: Mine = lambda *_: True,
    sample: int | Callable[[int], int] = 1,
) -> Iterator[Run]:
    """Every run with up to ``depth`` faults, those with few faults first.

    ``mine`` picks first faults, with all that can follow each: of all runs with exactly one
    fault it is given the number and the fault. Of the runs with ``depth`` faults only every
    ``sample``-th is made; it may be asked with their number.
    """
    level: list[Faults] = [()]
    for left in range(depth, -1, -1):
        deeper: list[Faults] = []
        for faults in level:
            found = one(faults)
            yield found
            if left:
                deeper += onward(found, faults)
        if left == depth:
            deeper = [faults for n, faults in enumerate(deeper) if mine(n, faults[0][1])]
        step = sample if isinstance(sample, int) else sample(len(deeper))
        level = deeper[:: step if left == 1 else 1]


def begins_with(how: str) -> Mine:
    """Only runs whose first fault is this."""
    return lambda _, first: first == how


def onward(found: Run, faults: Faults) -> Iterator[Faults]:
    """The same faults and one more, later."""
    first = faults[-1][0] + 1 if faults else 0
    for number, (_, _, *hows) in enumerate(found.questions[first:], first):
        for how in hows:
            yield (*faults, (number, how))


def _print(scene: Scene) -> int:
    return hash(
        tuple(
            (event.type, getattr(event, "step", ""), getattr(event, "code", ""))
            for saga_id in scene.database.sagas
            for event in scene.database.history(saga_id)
        )
    )


def _ending(scene: Scene) -> tuple[str, ...]:
    return tuple(f"{saga.start.saga} {saga.row.status}" for saga in scene.database.sagas.values())


# --- nothing is printed, and what the engine complains of is heard ------------------------------


class _Ear:
    """In the place of a logger."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def error(self, what: str, **more: Any) -> None:
        refused = self._scene.notes["join: refused"] and what == "step raised"
        if what in ("saga_quarantined", "saga set aside", "step raised") and not refused:
            self._scene.broken.append(f"the engine says: {what} {more}")

    def warning(self, what: str, **_: Any) -> None:
        self._scene.notes[what] += 1

    info = debug = lambda *_, **__: None


_LOGGERS: Final = ("driver", "execution", "transient_errors", "parking", "quarantine")


@contextlib.contextmanager
def quiet(scene: Scene, *more: str) -> Iterator[None]:
    """Inside, what the engine and the modules named ``more`` have to say goes to the scene."""
    names = (*(f"evosaga.orchestrator.engine.{name}" for name in _LOGGERS), *more)
    modules = [sys.modules[name] for name in names if name in sys.modules]
    before = [vars(module)["_logger"] for module in modules]
    for module in modules:
        vars(module)["_logger"] = _Ear(scene)
    try:
        yield
    finally:
        for module, logger in zip(modules, before, strict=True):
            vars(module)["_logger"] = logger
