"""A hundred workers in virtual time: many die or sleep, and each saga is done once all the same.

Everything is as in ``test_engine.py``, but what goes wrong is drawn by chance. There is no relay in
this simulation: that one leads at a time is asked of real ones in ``tests/events``.
"""

import random

import pytest

from evosaga.orchestrator.commands.testing.explorer import heal
from evosaga.orchestrator.commands.testing.loop import entered
from tests.harness.simulation.explorer import quiet
from tests.harness.simulation.judge import problems
from tests.harness.simulation.scenarios import create
from tests.harness.simulation.scene import Scene

WORKERS, SAGAS, FAULTY = 100, 60, 0.1
"""``FAULTY``: the share of calls of which something else becomes than they ask for."""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_workers_do_each_saga_once_whoever_dies(seed: int) -> None:
    chance = random.Random(seed)

    def choose(_: str, options: list[str]) -> str:
        wrong = [how for how in options[1:] if how.startswith(("crash", "sleep", "lost", "late"))]
        return chance.choice(wrong) if wrong and chance.random() < FAULTY else "ok"

    scene = Scene(choose, workers=WORKERS)
    with entered(scene.loop), quiet(scene):
        try:
            for n in range(SAGAS):
                command = create(organization=f"org-{n}", id_=f"create-{n}")
                scene.publish(command, scene.workers[n])
            scene.loop.run()
            heal(scene)
            wrong = problems(scene)
        finally:
            scene.loop.bury()
    assert wrong == []
    creates = [s for s in scene.database.sagas.values() if s.start.saga == "create-integration"]
    assert len(creates) == SAGAS, "each command became one saga"
    assert {s.row.status for s in creates} <= {"completed", "compensated"}
    assert scene.notes["crash"] >= 10
    assert scene.notes["take-over"] >= 10
