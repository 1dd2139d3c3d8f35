"""Walking through every way a run can go wrong, up to a number of faults.

Stateless model checking: a run is told by its faults, a list of (question, answer), and every
other question is answered with "ok"; the same list gives the same run. The run without a fault
says where faults are possible, each run with one says where a second is, and so on: so every
single fault at every place, and every pair of them, is tried once.

A run that breaks a law raises ``Broken``, whose text has the list that repeats it::

    run(SCENARIOS["create"], ((3, "lost"), (5, "sleep before")))
    python -m tests.harness.simulation create --repeat '((3, "lost"), (5, "sleep before"))'
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import evosaga.orchestrator.engine.driver
import evosaga.orchestrator.engine.execution
import evosaga.orchestrator.engine.parking
import evosaga.orchestrator.engine.quarantine
import evosaga.orchestrator.engine.transient_errors
import evosaga.sagas.whatsapp.evolution.circuit_breaker
from tests.harness.simulation.judge import problems
from tests.harness.simulation.loop import entered
from tests.harness.simulation.scenarios import Scenario
from tests.harness.simulation.scene import Scene

Faults: TypeAlias = tuple[tuple[int, str], ...]
Mine: TypeAlias = Callable[[int, str], bool]


class Broken(AssertionError):
    """A run in which a law was broken, with all that is needed to see it again."""


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


def run(scenario: Scenario, faults: Faults = (), *, fenced: bool = True) -> Run:
    """One run. Raises ``Broken``."""
    asked: list[tuple[str, ...]] = []
    answers = dict(faults)

    def choose(kind: str, options: list[str]) -> str:
        how = answers.get(len(asked), "ok")
        assert how in options, f"the run has changed: no {how} at {len(asked)}, only {options}"
        asked.append((kind, *options))
        return how

    scene = Scene(choose, fenced=fenced, deadline=scenario.deadline)
    with entered(scene.loop), quiet(scene):
        try:
            scenario.prepare(scene)
            scene.loop.run()
            heal(scene)
            wrong = problems(scene)
        finally:
            scene.loop.bury()
    if wrong:
        told = "\n  ".join([*wrong, *scene.trace[-60:]])
        raise Broken(f"run(SCENARIOS[{scenario.name!r}], {faults!r}, {fenced=}):\n  {told}")
    return Run(faults, tuple(asked), scene.notes, _print(scene), _ending(scene))


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


def explore(
    scenario: Scenario,
    depth: int,
    *,
    fenced: bool = True,
    mine: Mine = lambda *_: True,
    sample: int = 1,
) -> Tally:
    """Every run with up to ``depth`` faults. Raises ``Broken``."""
    tally = Tally()
    for found in runs(scenario, depth, fenced=fenced, mine=mine, sample=sample):
        tally.add(found)
    return tally


def runs(
    scenario: Scenario,
    depth: int,
    *,
    fenced: bool = True,
    mine: Mine = lambda *_: True,
    sample: int = 1,
) -> Iterator[Run]:
    """The same, one by one, those with few faults first.

    ``mine`` picks first faults, with all that can follow each: of all runs with exactly one
    fault it is given the number and the fault. Of the runs with ``depth`` faults only every
    ``sample``-th is made.
    """
    level: list[Faults] = [()]
    for left in range(depth, -1, -1):
        deeper: list[Faults] = []
        for faults in level:
            found = run(scenario, faults, fenced=fenced)
            yield found
            if left:
                deeper += onward(found, faults)
        if left == depth:
            deeper = [faults for n, faults in enumerate(deeper) if mine(n, faults[0][1])]
        level = deeper[:: sample if left == 1 else 1]


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


_LOGGERS: Final = (
    evosaga.orchestrator.engine.driver,
    evosaga.orchestrator.engine.execution,
    evosaga.orchestrator.engine.transient_errors,
    evosaga.orchestrator.engine.parking,
    evosaga.orchestrator.engine.quarantine,
    evosaga.sagas.whatsapp.evolution.circuit_breaker,
)


@contextlib.contextmanager
def quiet(scene: Scene) -> Iterator[None]:
    """Inside, what the product has to say goes to the scene."""
    before = [vars(module)["_logger"] for module in _LOGGERS]
    for module in _LOGGERS:
        vars(module)["_logger"] = _Ear(scene)
    try:
        yield
    finally:
        for module, logger in zip(_LOGGERS, before, strict=True):
            vars(module)["_logger"] = logger
