"""Torture: a definition run through everything that can go wrong, against its author's fake.

    @torture(BOOK_A_ROOM, BookRoom(room=101, guest="ada"), faults=2)
    class FakeHotel: ...

In virtual time and on the real engine, each call of the fake and each commit is refused, loses its
answer, comes late, or is the last that its worker does, or the one over which it falls asleep; a
person cancels; and all of that in pairs. In the end a completed saga must have left the world as it
does when nothing goes wrong, one that was undone as it was before, and none may hang.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar
from uuid import UUID

from evosaga.events.commands import Command, saga_id_of
from evosaga.events.model import SagaRejected
from evosaga.orchestrator.commands.testing.explorer import (
    Broken,
    Changed,
    Choose,
    Faults,
    Run,
    Tally,
    play,
    runs,
)
from evosaga.orchestrator.commands.testing.probing import disagreements, results
from evosaga.orchestrator.commands.testing.rivals import rivals
from evosaga.orchestrator.commands.testing.scene import FAULTS, WORKER, Scene
from evosaga.orchestrator.commands.testing.story import told
from evosaga.orchestrator.commands.testing.wall_clock import clock_watched
from evosaga.orchestrator.commands.testing.workers import Op, Worker
from evosaga.orchestrator.commands.testing.world import (
    CALL,
    LOOK,
    Effect,
    Proxy,
    difference,
    state_of,
)
from evosaga.sagas.definition import Retry, Saga
from evosaga.sagas.registry import registry_of

ID: Final = "torture"
_CALL: Final = ("refused", "lost", "late", "crash before", *WORKER, "doze", "cancel")
_LOOK: Final = ("refused", "sleep before", "sleep after", "cancel")
_SLOW: Final = 0.5
"""Seconds of real time that a step may keep the event loop to itself."""
_BUDGET: Final = 45.0
"""Seconds of CPU for the deepest faults; of what is too much for that every n-th run is made."""
WorldT = TypeVar("WorldT")


class Stage(Scene):
    """A scene with the author's world in it."""

    faults = MappingProxyType({**FAULTS, CALL: _CALL, LOOK: _LOOK})

    def __init__(self, torture: "Torture", choose: Choose) -> None:
        self.torture = torture
        self.world: Any = torture.world() if torture.world is not None else None
        self.before = state_of(self.world)
        self.looks = torture.looks
        self.effects: list[Effect] = []
        self.called: set[str] = set()
        super().__init__(registry_of([torture.hasty]), choose)
        self.loop.slow = _SLOW

    def prepare(self) -> None:
        self.database.tables = getattr(self.world, "postgres", None)

    def services_of(self, worker: Worker) -> Any:
        return Proxy(worker, self.world)

    def happens(self, path: str, said: str, worker: str, do: Callable[[], Any]) -> Any:
        """Carry a call out, and note whether it changed anything."""
        before = state_of(self.world)
        self.called.add(path)
        try:
            return do()
        finally:
            if state_of(self.world) != before:
                self.effects.append(Effect(path, said, self.loop.now, worker))

    def go_wrong(self, op: Op, how: str) -> None:
        if op.kind not in (CALL, LOOK):
            super().go_wrong(op, how)
            return
        self.pending.remove(op)
        if how == "refused":
            refused = getattr(self.world, "refused", ConnectionRefusedError("refused"))
            op.future.set_exception(refused)
            return
        if how == "lost":
            self.do(op)
        else:
            self.land_later(op)
        op.future.set_exception(getattr(self.world, "lost", TimeoutError("no answer")))


@dataclass
class Torture:
    """What is to be tortured: a definition, inputs of it, and a fake of what its steps use.

    ``world``: makes a new fake; None: the steps' own probes are all that is asked. Attributes of a
    fake that mean something: ``state()`` gives what must be as it was, where not everything must;
    ``refused`` and ``lost`` are the exceptions that its client raises; ``postgres`` is what effects
    that join a commit get as their connection.
    """

    saga: Saga
    inputs: Sequence[Any]
    world: Callable[[], Any] | None = None
    faults: int = 1
    budget: float = _BUDGET
    name: str = ""
    looks: frozenset[str] = frozenset()
    """Calls that never change anything, as the run without a fault found."""
    expected: Any = None

    @property
    def hasty(self) -> Saga:
        """The saga with few attempts, so that two faults use them up."""
        return replace(
            self.saga,
            steps=tuple(
                replace(step, retry=Retry(attempts=2, first=step.retry.first), undo_retry=None)
                for step in self.saga.steps
            ),
        )

    def __call__(self, faults: int | None = None) -> Tally:
        """Every run with up to so many faults, for each input. Raises ``Broken``."""
        tally = Tally()
        for number in range(len(self.inputs)):
            one = self.prepared(number)
            spent, before = time.process_time(), tally.runs
            depth = self.faults if faults is None else faults

            def sample(many: int, spent: float = spent, before: int = before) -> int:
                each = (time.process_time() - spent) / max(1, tally.runs - before)
                return max(1, round(many * each * len(self.inputs) / self.budget))

            for found in runs(one, depth, sample=sample):
                tally.add(found)
            if self.saga.on_conflict != "refuse":
                make = partial(Stage, self)
                for found in runs(rivals(self, number, make), min(depth, 1)):
                    tally.add(found)
        return tally

    def prepared(self, number: int) -> Callable[[Faults], Run]:
        """One run of that input, compared with the one without a fault. Raises ``Broken``."""
        self.learn(number)
        return self.compared(number)

    def learn(self, number: int) -> None:
        """Learn from the run without a fault what is right. Raises ``Broken``."""
        self.looks, self.expected = frozenset(), None
        first, run, wrong = self._play(number, ())
        if wrong:
            raise Broken(self._said(number, (), first, wrong))
        self.looks = frozenset(first.called - {effect.path for effect in first.effects})
        first, run, _ = self._play(number, ())
        again, same, _ = self._play(number, ())
        self._compare(number, (), first, run, again, same)
        self.expected = (run.ending, state_of(first.world), list(first.effects))

    def compared(self, number: int) -> Callable[[Faults], Run]:
        """One run of that input, compared with what was learnt."""

        def one(faults: Faults) -> Run:
            stage, found, wrong = self._play(number, faults)
            if not faults and found.ending != self.expected[0]:
                wrong.append(f"without any fault it ends {found.ending[0]}")
            if wrong:
                self._compare(number, faults, stage, found, *self._play(number, faults)[:2])
                raise Broken(self._said(number, faults, stage, wrong))
            return found

        return one

    def repeat(self, faults: Faults, number: int = 0) -> Run:
        """One run again. Raises ``Broken`` with its story."""
        return self.prepared(number)(faults)

    def _play(self, number: int, faults: Faults) -> tuple[Stage, Run, list[str]]:
        data = self.inputs[number].model_dump(mode="json")
        command = Command(ID, self.saga.command, data)

        def publish(stage: Stage) -> None:
            stage.publish(command)
            stage.publish(command, stage.workers[1])  # every command is delivered twice

        try:
            with clock_watched() as read:
                stage, run, wrong = play(
                    lambda choose: Stage(self, choose), faults, publish, self._judge
                )
            return stage, run, [*read, *wrong]
        except Changed as error:
            raise Broken(f"{self.label}: not deterministic, {error}; {_CURE}") from None

    def _judge(self, stage: Stage) -> list[str]:
        wrong = [_plainly(one) for one in stage.broken] + stage.loop.troubles
        saga = stage.database.sagas[saga_id_of(ID)]
        status = saga.row.status
        if saga.state is None:
            return [*wrong, "its history makes no sense"]
        if isinstance(saga.start, SagaRejected):
            return (
                [*wrong, f"it was refused: {saga.row.message}"] if self.expected is None else wrong
            )
        if status in ("running", "compensating"):
            wrong.append(f"it is {status} for ever, at step {saga.row.step}")
        if self.expected is None:
            if status == "failed" and saga.row.direction == "forward":
                wrong.append(f"without any fault it is parked: {saga.row.code}, {saga.row.message}")
            return wrong
        now = state_of(stage.world)
        (ending, then, effects), place = self.expected, ""
        if status == "completed" and ending[0].endswith("completed"):
            place = difference(now, then)
        elif status == "compensated":
            place = difference(now, stage.before)
        if place:
            wrong += [*twice(stage.effects, effects), f"it is {status}, and {place}"]
        if status in ("completed", "compensated"):
            wrong += disagreements(stage, saga)
        return wrong

    def _compare(
        self, number: int, faults: Faults, one: Stage, first: Run, other: Stage, second: Run
    ) -> None:
        """Raise when the same faults gave two different runs."""
        for before, after in zip(one.trace, other.trace, strict=False):
            if before != after:
                raise Broken(
                    f"{self.label}: two runs with the same faults differ: {before.strip()!r}, "
                    f"then {after.strip()!r}; {_CURE}"
                )
        said = difference(state_of(other.world), state_of(one.world)) or difference(
            {"what the steps said": results(other)}, {"what the steps said": results(one)}
        )
        if said or first.histories != second.histories:
            raise Broken(f"{self.label}: two runs with the same faults differ: {said}; {_CURE}")

    @property
    def label(self) -> str:
        return self.name or self.saga.name

    def _said(self, number: int, faults: Faults, stage: Stage, wrong: Sequence[str]) -> str:
        return told(self.label, number, faults, stage, wrong)


_CURE: Final = (
    "a fake and its steps must do the same each time: no clock, no random numbers, no order of a "
    "set"
)


def twice(effects: Sequence[Effect], expected: Sequence[Effect]) -> list[str]:
    """The calls that took effect more often than they do when nothing goes wrong."""
    found = []
    for path in sorted({effect.path for effect in effects}):
        times = [effect for effect in effects if effect.path == path]
        once = sum(effect.path == path for effect in expected)
        if once and len(times) > once:
            who = ", ".join(f"{effect.worker} at {effect.at:.3f}" for effect in times)
            word = "twice" if len(times) == 2 else f"{len(times)} times"
            found.append(f"{path} took effect {word}: {who}")
    return found


def _plainly(said: str) -> str:
    if "NotImplementedError" in said:
        return f"{said}; a step uses a real connection or thread, give it a fake"
    return said


def torture(
    saga: Saga, *inputs: Any, faults: int = 1, budget: float = _BUDGET
) -> Callable[[type[WorldT]], type[WorldT]]:
    """Torture ``saga`` with the decorated class as the world; pytest runs it by itself.

    ``faults``: how many go wrong in one run at most.
    """

    def decorate(world: type[WorldT]) -> type[WorldT]:
        of_it = Torture(saga, inputs, world, faults, budget, world.__name__)
        world.torture = of_it  # type: ignore[attr-defined]
        return world

    return decorate


def saga_id() -> UUID:
    """The id of the saga in every run, for fakes that want to know it."""
    return saga_id_of(ID)
