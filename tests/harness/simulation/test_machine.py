"""Several sagas at once, and anything in any order: a state machine that Hypothesis drives.

Three names of which two organizations may want the same, three workers, people who cancel, replay
and meddle with Evolution by hand. What the explorer walks through systematically for one saga,
this does at random for many; the judge is the same.
"""

from typing import Any, Final

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from evosaga.events.commands import Command
from evosaga.orchestrator.commands.testing.loop import entered
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from tests.harness.simulation.explorer import heal, quiet
from tests.harness.simulation.judge import problems
from tests.harness.simulation.scenarios import create, delete
from tests.harness.simulation.scene import Scene

NAMES: Final = ("sol", "lua", "mar")
ORGANIZATIONS: Final = ("org-a", "org-b", "org-c")
TROUBLE: Final = 4
"""How often the machinery may make each kind of trouble, so that there is time for the others."""


class ManySagas(RuleBasedStateMachine):
    """``how`` numbers pick from what is possible at that moment; 0 is always that all goes well."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(lambda kind, options: options[0], workers=3, deadline=90.0)
        self.scene.loop.idle = lambda: False
        self.commands: list[Command] = []

    def go(self, what: Any = None, *args: Any, **more: Any) -> None:
        """Do something, and let everybody go on until they wait for an answer or for time."""
        with entered(self.scene.loop), quiet(self.scene):
            if what is not None:
                what(*args, **more)
            self.scene.loop.run()

    # --- commands --------------------------------------------------------------------------------

    def publish(self, command: Command) -> None:
        self.commands.append(command)
        workers = self.scene.awake()
        self.go(self.scene.publish, command, workers[len(self.commands) % len(workers)])

    @initialize()
    def two_want_the_same(self) -> None:
        self.create("sol", "org-a")
        self.create("sol", "org-b")

    @rule(name=st.sampled_from((None, *NAMES)), organization=st.sampled_from(ORGANIZATIONS))
    def create(self, name: str | None, organization: str) -> None:
        self.publish(create(name, organization, f"command-{len(self.commands)}"))

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.made())
    def delete(self, number: int) -> None:
        made = self.made()
        self.publish(delete(made[number % len(made)], f"command-{len(self.commands)}"))

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: self.scene.notes["duplicate command"] < TROUBLE)
    def duplicate(self, number: int) -> None:
        self.publish(self.commands[number % len(self.commands)])

    @rule(number=st.integers(0, 9), what=st.sampled_from(("saga.cancel", "saga.replay")))
    @precondition(lambda self: self.scene.database.sagas and self.rarely("saga.cancel"))
    def steer(self, number: int, what: str) -> None:
        ids = list(self.scene.database.sagas)
        awake = self.scene.awake()
        self.go(self.scene.steer, what, ids[number % len(ids)], awake[number % len(awake)])

    def made(self) -> list[str]:
        """The names of all instances that a create asked for."""
        return [
            saga.start.instance_name
            for saga in self.scene.database.sagas.values()
            if saga.start.saga == CREATE_INTEGRATION.name and saga.start.instance_name
        ]

    # --- what happens to workers and calls -------------------------------------------------------

    @rule(calls=st.integers(1, 5))
    def go_on(self, calls: int) -> None:
        """So many calls are answered as they should; when none is out, time passes."""
        for _ in range(calls):
            if ready := self.scene.ready():
                self.go(self.scene.settle, ready[0], "ok")
            else:
                self.tick()

    @rule(place=st.integers(0, 5), how=st.integers(0, 11))
    @precondition(lambda self: self.scene.ready())
    def answer(self, place: int, how: int) -> None:
        ready = self.scene.ready()
        op = ready[place % len(ready)]
        options = [o for o in self.scene.options(op.kind, [op]) if self.fair(o, op.about)]
        self.go(self.scene.settle, op, options[how % len(options)])

    def fair(self, how: str, name: str) -> bool:
        """The clean-up by name that follows a 400 takes whoever bears a name that is used again.

        Nothing that a client does can help that, and it is why derived names never are.
        """
        return not how.startswith("cancel") and (how != "400" or name not in NAMES)

    @rule()
    def tick(self) -> None:
        when = self.scene.next_event()
        if when is not None:
            self.go(self.scene.pass_time, when)

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: len(self.scene.awake()) > 1 and self.rarely("paused"))
    def pause(self, number: int) -> None:
        self.scene.notes["paused"] += 1
        awake = self.scene.awake()
        self.go(self.scene.sleep, awake[number % len(awake)], beat_first=bool(number % 2))

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: any(worker.asleep for worker in self.scene.workers))
    def resume(self, number: int) -> None:
        asleep = [worker for worker in self.scene.workers if worker.asleep]
        self.go(self.scene.wake, asleep[number % len(asleep)], bool(number % 2))

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: self.rarely("crash"))
    def crash(self, number: int) -> None:
        alive = [worker for worker in self.scene.workers if not worker.dead]
        self.go(self.scene.crash, alive[number % len(alive)])

    @rule()
    @precondition(lambda self: self.scene.limbo)
    def land(self) -> None:
        self.go(self.scene.land, self.scene.limbo[0])

    def rarely(self, what: str) -> bool:
        return self.scene.notes[what] < TROUBLE

    # --- what people do by hand ------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def make_by_hand(self, name: str) -> None:
        evolution = self.scene.evolution
        if name not in evolution.memory and name not in evolution.rows:
            self.scene.strangers[name] = f"a-strangers-token-{name}"
            evolution.put(name, self.scene.strangers[name])

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: self.ours())
    def drop_by_hand(self, number: int) -> None:
        ours = self.ours()
        name = ours[number % len(ours)]
        self.scene.by_hand.add(name)
        self.scene.evolution.drop(name)

    def ours(self) -> list[str]:
        return sorted(set(self.scene.evolution.rows) - set(self.scene.strangers))

    # --- judgement -------------------------------------------------------------------------------

    @invariant()
    def nothing_is_broken(self) -> None:
        assert not self.scene.broken, self.told(self.scene.broken)
        for saga in self.scene.database.sagas.values():
            assert saga.state is not None, self.told(["a history makes no sense"])

    def teardown(self) -> None:
        with entered(self.scene.loop), quiet(self.scene):
            self.scene.loop.idle = self.scene._idle
            self.scene.calm = True
            self.scene.loop.run()
            heal(self.scene)
            wrong = problems(self.scene)
            self.scene.loop.bury()
        assert not wrong, self.told(wrong)

    def told(self, wrong: list[str]) -> str:
        return "\n  ".join([*wrong, *self.scene.trace[-80:]])


def drive(examples: int, steps: int) -> None:
    run_machine(
        ManySagas,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_many_sagas_at_once_keep_every_law() -> None:
    drive(examples=20, steps=50)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_more_sagas_at_once_keep_every_law() -> None:
    drive(examples=1500, steps=80)
