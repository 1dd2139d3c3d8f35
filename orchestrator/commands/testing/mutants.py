"""Mutants of an author's steps: mistakes that a good torture must catch."""

import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from evosaga.orchestrator.commands.testing.explorer import Broken, runs
from evosaga.orchestrator.commands.testing.torture import Torture
from evosaga.sagas.definition import InCommit, Saga, Step
from evosaga.sagas.outcome import Done


@dataclass(frozen=True)
class Mutant:
    """``mistake`` in one step of the saga."""

    step: str
    mistake: str
    saga: Saga


def mutants(saga: Saga) -> Iterator[Mutant]:
    """The saga with one mistake each."""
    for step in saga.steps:
        if not isinstance(step.do, InCommit):
            if _asks(step.do, "in_doubt"):
                yield _with(saga, step, "it does not look when in doubt", do=_sure(step.do))
            if step.undo is not None:
                yield _with(saga, step, "its undo forgets to undo", undo=_idle)
            yield _with(saga, step, "it says done and does nothing", do=_idle)


def survivors(torture: Torture, faults: int = 1) -> list[str]:
    """The mutants that the torture does not catch, each as a sentence."""
    left = []
    for mutant in mutants(torture.saga):
        if _caught(torture, mutant, faults):
            continue
        left.append(
            f"no run would notice if the step {mutant.step} were wrong: {mutant.mistake}; let the "
            f"world of {torture.label} keep what the step makes, or add an input that needs it"
        )
    return left


def _caught(torture: Torture, mutant: Mutant, faults: int) -> bool:
    """Whether any run with the mistake differs from what is right without it."""
    for number in range(len(torture.inputs)):
        torture.learn(number)
        mine = replace(torture, saga=mutant.saga)
        try:
            for _ in runs(mine.compared(number), faults):
                pass
        except Broken:
            return True
    return False


def _with(saga: Saga, step: Step, mistake: str, **changes: Any) -> Mutant:
    steps = tuple(replace(one, **changes) if one is step else one for one in saga.steps)
    return Mutant(step.name, mistake, replace(saga, steps=steps))


async def _idle(_ctx: Any) -> Done:
    return Done()


def _sure(do: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(do)
    async def without_doubt(ctx: Any) -> Any:
        return await do(replace(ctx, in_doubt=False, doubt_age=None))

    return without_doubt


def _asks(function: Any, name: str) -> bool:
    """Whether its code, or that of a function it calls from its own module, reads that name."""
    seen: set[int] = set()

    def reads(one: Any) -> bool:
        code = getattr(one, "__code__", None)
        if not isinstance(code, types.CodeType) or id(code) in seen:
            return False
        seen.add(id(code))
        if name in code.co_names:
            return True
        return any(reads(one.__globals__.get(called)) for called in code.co_names)

    return reads(function)
