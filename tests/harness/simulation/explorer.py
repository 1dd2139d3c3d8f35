"""The kit's walk (``evosaga.orchestrator.commands.testing.explorer``) over WhatsApp's scenarios.

A run that breaks a law raises ``Broken``, whose text has the list that repeats it::

    run(SCENARIOS["create"], ((3, "lost"), (5, "sleep before")))
    python -m tests.harness.simulation create --repeat '((3, "lost"), (5, "sleep before"))'
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager

from evosaga.orchestrator.commands.testing import explorer as kit
from evosaga.orchestrator.commands.testing.explorer import Broken as Broken
from evosaga.orchestrator.commands.testing.explorer import Faults as Faults
from evosaga.orchestrator.commands.testing.explorer import Mine, Run, Tally
from evosaga.orchestrator.commands.testing.explorer import begins_with as begins_with
from evosaga.orchestrator.commands.testing.explorer import heal as heal
from evosaga.orchestrator.commands.testing.explorer import onward as onward
from tests.harness.simulation.judge import problems
from tests.harness.simulation.scenarios import Scenario
from tests.harness.simulation.scene import Scene

_BREAKER = "evosaga.sagas.whatsapp.evolution.circuit_breaker"


def run(scenario: Scenario, faults: Faults = (), *, fenced: bool = True) -> Run:
    """One run. Raises ``Broken``."""

    def prepare(scene: Scene) -> None:
        scenario.prepare(scene)

    scene, found, wrong = kit.play(
        lambda choose: Scene(choose, fenced=fenced, deadline=scenario.deadline),
        faults,
        prepare,
        problems,
        _BREAKER,
    )
    if wrong:
        told = "\n  ".join([*wrong, *scene.trace[-60:]])
        raise Broken(f"run(SCENARIOS[{scenario.name!r}], {faults!r}, {fenced=}):\n  {told}")
    return found


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
    """The same, one by one, those with few faults first."""
    return kit.runs(
        lambda faults: run(scenario, faults, fenced=fenced), depth, mine=mine, sample=sample
    )


def quiet(scene: Scene) -> AbstractContextManager[None]:
    """Inside, what the product has to say goes to the scene."""
    return kit.quiet(scene, _BREAKER)
