"""Whether the steps' own probes say what the saga came to."""

from typing import TYPE_CHECKING, Any

from evosaga.events.model import StepSucceeded
from evosaga.orchestrator.commands.testing.memory import Status, at_once
from evosaga.sagas.context import StepContext
from evosaga.sagas.definition import Kind
from evosaga.sagas.outcome import Sighting

if TYPE_CHECKING:
    from evosaga.orchestrator.commands.testing.torture import Stage


def disagreements(stage: "Stage", saga: Status) -> list[str]:
    """A completed saga's probes must find their effects, an undone one's must find none."""
    definition = stage.torture.saga
    start: Any = saga.start
    assert saga.state is not None
    known = {n: p.result for n, p in saga.state.steps.items() if p.result is not None}
    found = []
    for step in definition.steps:
        if step.probe is None:
            continue
        ctx: StepContext[Any, Any] = StepContext(
            saga_id=saga.saga_id,
            input=definition.input.model_validate(start.input),
            services=stage.world,
            facts=start.facts,
            results=known,
        )
        seen = at_once(step.probe(ctx))
        there = saga.row.status == "completed"
        wrong = Sighting.ABSENT if there else Sighting.THERE
        if seen.sighting is wrong and (there or step.kind is Kind.COMPENSATABLE):
            found.append(
                f"it is {saga.row.status}, and the probe of {step.name} says {seen.evidence}"
            )
    return found


def results(stage: "Stage") -> list[Any]:
    """What every step said when it was done, in order."""
    return [
        event.result
        for saga in stage.database.sagas
        for event in stage.database.history(saga)
        if isinstance(event, StepSucceeded)
    ]
