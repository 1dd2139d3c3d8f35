"""A saga that is held again under the claim it has: every fault that can come then, and its price.

The tries that follow the first hold write no event, so no other exploration has them often enough:
a fault after two holds in a row is the third of its run.
"""

from evosaga.orchestrator.commands.testing.loop import entered
from tests.harness.simulation.explorer import Faults, onward, quiet, run
from tests.harness.simulation.judge import problems
from tests.harness.simulation.scenarios import SCENARIOS, create
from tests.harness.simulation.scene import Scene

OUTAGE = 600.0


def held_twice() -> Faults:
    """The faults of a create whose first two calls of Evolution are refused."""
    faults: Faults = ()
    for _ in range(2):
        after = faults[-1][0] + 1 if faults else 0
        questions = run(SCENARIOS["create"], faults).questions
        calls = (n for n, (kind, *_) in enumerate(questions) if kind in ("look", "create"))
        faults = (*faults, (next(n for n in calls if n >= after), "refused"))
    return faults


def test_no_fault_after_two_holds_in_a_row_breaks_a_law() -> None:
    faults = held_twice()
    found = run(SCENARIOS["create"], faults)
    assert found.notes["held again"] == 1
    seen = {found.questions[after[-1][0]][0] for after in onward(found, faults)}
    assert "hold" in seen
    for after in onward(found, faults):
        run(SCENARIOS["create"], after)


def test_ten_minutes_of_an_outage_cost_two_events_more() -> None:
    assert events_of_an_outage() == events_without() + 2


def events_of_an_outage() -> int:
    return _events(OUTAGE)


def events_without() -> int:
    return _events(0.0)


def _events(until: float) -> int:
    """So many events has a create when Evolution refuses connections for so many seconds."""
    scene: Scene

    def choose(kind: str, options: list[str]) -> str:
        away = kind in ("look", "create") and scene.loop.now - began < until
        return "refused" if away else "ok"

    scene = Scene(choose)
    began = scene.loop.now
    with entered(scene.loop), quiet(scene):
        try:
            scene.publish(create())
            scene.loop.run()
            wrong = problems(scene)
        finally:
            scene.loop.bury()
    assert wrong == []
    took = scene.loop.now - began
    assert took >= until
    [saga] = scene.database.sagas
    print(f"{len(scene.database.events[saga])} events in {took:.0f} s, held {until:.0f} s")
    return len(scene.database.events[saga])
