"""Every single fault and pairs of faults, at every place of a create and of a delete.

What runs is the product's engine with its lease, its attempts, its steps and its client of
Evolution, of two workers that take over from each other, on stores in memory (``workers.py``).
``explorer.py`` tells how the runs are enumerated and how to repeat one that failed.

In the suite: all single faults everywhere, and a sample of the pairs in a create and in a delete.
What is marked ``long``, which ``make chaos`` begins with, tries all pairs of all scenarios and a
sample of the triples, as ``python -m tests.harness.simulation --deep`` does.
"""

import asyncio
import contextlib
import gc
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest

from evosaga.orchestrator.commands.testing.loop import entered
from tests.harness.simulation.explorer import Faults, explore, onward, quiet, run, runs
from tests.harness.simulation.judge import problems
from tests.harness.simulation.scenarios import SCENARIOS
from tests.harness.simulation.scene import FAULTS, Scene
from tests.support.sampled import sampled

EVERY: Final = pytest.mark.parametrize("name", SCENARIOS)
SOMETIMES: Final = (
    "take-over",
    "version_conflict",
    "zombie woken",
    "attempt_abandoned",
    "unknown resolved as applied",
    "unknown resolved as not applied",
    "create: lost",
    "landed late",
    "landed after it was compensated",
    "follow-up instance.watch",
    "parked",
    "saga.resumed",
    "saga.compensated",
    "saga.completed",
    "saga.rejected",
    *(f"cancelled at {step}" for step in ("mark", "evolution", "cache")),
    *(f"{kind}: {how}" for kind in ("create", "delete", "join", "redis") for how in FAULTS[kind]),
    *("append: crash late", "append: sleep before", "look: 500", "other first"),
)
"""The exploration is void unless each of these was seen."""


def test_no_single_fault_breaks_a_law_and_everything_that_can_happen_has_happened() -> None:
    seen: Counter[str] = Counter()
    for scenario in SCENARIOS.values():
        tally = explore(scenario, 1)
        endings = dict(tally.endings)
        print(f"{scenario.name}: {tally.runs} runs, {len(tally.histories)} histories, {endings}")
        assert tally.runs > 15, scenario.name
        seen += tally.notes
    seen += run(SCENARIOS["delete"], two_lies()).notes  # these park it
    assert [what for what in SOMETIMES if not seen[what]] == []


def two_lies() -> Faults:
    """The first two places of a delete at which Evolution can lie."""
    faults: Faults = ()
    for _ in range(2):
        found = run(SCENARIOS["delete"], faults)
        faults = next(more for more in onward(found, faults) if more[-1][1] == "lie")
    return faults


@pytest.mark.parametrize(
    "name",
    sampled([one for one in SCENARIOS if one != "create and delete"], keep=["create", "delete"]),
)
def test_the_sequence_alone_stops_a_zombie_that_never_asks_its_lease(name: str) -> None:
    tally = explore(SCENARIOS[name], 1, fenced=False)
    assert tally.notes["zombie woken"]
    assert not tally.notes["attempt_abandoned"]


@pytest.mark.parametrize(
    ("name", "sample"), sampled([("create", 30), ("delete", 75)], keep=[("create", 30)])
)
def test_no_two_faults_of_a_sample_break_a_law(name: str, sample: int) -> None:
    assert explore(SCENARIOS[name], 2, sample=sample).runs > 80


def test_a_run_is_told_by_its_faults() -> None:
    for found in runs(SCENARIOS["create where a stranger lives"], 1):
        assert run(SCENARIOS["create where a stranger lives"], found.faults) == found


def test_what_another_test_left_behind_does_not_change_a_run() -> None:
    """Collected in the middle of a run, its finalizer would find the run's loop."""
    create = SCENARIOS["create"]
    refused = next(
        one.faults for one in runs(create, 1) if one.faults and one.faults[0][1] == "refused"
    )
    alone = run(create, refused)

    class LeftBehind:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            with contextlib.suppress(RuntimeError):  # none is running
                asyncio.get_running_loop().call_later(0.3, list)

    def prepare(scene: Scene) -> None:
        LeftBehind()
        create.prepare(scene)

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        assert run(replace(create, prepare=prepare), refused) == alone
    finally:
        gc.set_threshold(*thresholds)


def test_a_claim_that_a_worker_renewed_is_not_the_one_it_lost() -> None:
    """A held attempt is claimed anew under its old number, by the same worker as before."""
    codes = renewed_claim()
    assert "evolution_unreachable" in codes
    assert "worker_lost" not in codes, "the second worker spoke for an attempt that was under way"


def renewed_claim() -> list[str]:
    """A worker is taken for dead, wakes up, and claims the same attempt again, while the commit
    of the one that takes over is slow. The codes of what failed.
    """
    scene = Scene(lambda kind, options: options[0])
    scene.loop.idle = lambda: False
    first = scene.workers[0]
    with entered(scene.loop), quiet(scene):
        SCENARIOS["create"].prepare(scene)
        scene.loop.run()
        settle(scene, "accept")
        settle(scene, "create", "refused")
        scene.sleep(first, beat_first=True)
        pass_time(scene)  # its lease runs out, and the second worker takes over
        slow = scene.pending.pop()
        scene.wake(first, beat_first=True)
        scene.loop.run()
        settle(scene, "append")  # held, after all
        pass_time(scene)
        settle(scene, "append")  # and claimed again
        scene.pending.insert(0, slow)
        settle(scene, "append")
        scene.loop.idle = scene._idle
        scene.loop.run()
        wrong = problems(scene)
        scene.loop.bury()
    assert wrong == []
    [saga_id] = scene.database.sagas
    return [getattr(event, "code", "") for event in scene.database.history(saga_id)]


def settle(scene: Scene, kind: str, how: str = "ok") -> None:
    """Settle the oldest call that is out."""
    op = scene.ready()[0]
    assert op.kind == kind
    scene.settle(op, how)
    scene.loop.run()


def pass_time(scene: Scene) -> None:
    when = scene.next_event()
    assert when is not None
    scene.pass_time(when)
    scene.loop.run()


# --- more, for make chaos ------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1200)
@EVERY
def test_no_two_faults_break_a_law_anywhere(name: str) -> None:
    assert explore(SCENARIOS[name], 2).runs > 150


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["create", "create with a deadline", "delete"])
def test_no_three_faults_of_a_sample_break_a_law(name: str) -> None:
    explore(SCENARIOS[name], 3, sample=97)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["create", "delete"])
def test_no_two_faults_break_a_law_when_nobody_asks_the_lease(name: str) -> None:
    explore(SCENARIOS[name], 2, fenced=False)
