"""Torture of a definition's policy: two commands for one business key, and everything goes wrong.

No two of them may be at work at once, and both must come to an end: whatever becomes of the
worker that drives the first, the second gets its turn, and not before.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from evosaga.events.commands import Command, saga_id_of
from evosaga.orchestrator.commands.testing.explorer import (
    Broken,
    Changed,
    Choose,
    Faults,
    Run,
    play,
)
from evosaga.orchestrator.commands.testing.story import told

if TYPE_CHECKING:
    from evosaga.orchestrator.commands.testing.torture import Stage, Torture

FIRST: Final = "torture"
SECOND: Final = "torture-rival"


def rivals(
    torture: "Torture", number: int, make: "Callable[[Choose], Stage]"
) -> Callable[[Faults], Run]:
    """One run of two commands with that input, on a stage of its own. Raises ``Broken``."""
    data = torture.inputs[number].model_dump(mode="json")

    def publish(stage: "Stage") -> None:
        stage.publish(Command(FIRST, torture.saga.command, data))
        stage.loop.call_later(0.0005, stage.publish, Command(SECOND, torture.saga.command, data))

    def one(faults: Faults) -> Run:
        try:
            stage, run, wrong = play(make, faults, publish, _judge)
        except Changed as error:
            raise Broken(f"{torture.label}: not deterministic, {error}") from None
        if wrong:
            raise Broken(told(f"{torture.label} beside itself", number, faults, stage, wrong))
        return run

    return one


def _judge(stage: "Stage") -> list[str]:
    wrong = [*stage.broken, *stage.loop.troubles]
    for id_ in (FIRST, SECOND):
        saga = stage.database.sagas.get(saga_id_of(id_))
        if saga is not None and saga.row.status in ("running", "compensating"):
            wrong.append(
                f"the {'first' if id_ == FIRST else 'second'} of two is {saga.row.status} for "
                f"ever: {saga.row.message or saga.row.step}"
            )
    return wrong
