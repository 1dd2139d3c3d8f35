"""A worker in virtual time: one saga from its command to its end, in milliseconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evosaga.events.commands import Command, saga_id_of
from evosaga.events.model import SagaEvent
from evosaga.orchestrator.commands.testing.explorer import play
from evosaga.orchestrator.commands.testing.torture import ID, Stage, Torture
from evosaga.sagas.definition import Saga


@dataclass(frozen=True)
class Ended:
    """What became of it. ``seconds``: how long it would have taken."""

    status: str
    code: str | None
    message: str | None
    events: tuple[SagaEvent, ...]
    seconds: float
    world: Any


def run(saga: Saga, data: Any, world: Callable[[], Any] | None = None) -> Ended:
    """Run a saga on the real engine, with a fake of what its steps use; nothing goes wrong.

    ``world`` makes the fake: a class, or a function that sets one up. Waits take no time.
    """
    torture = Torture(saga, [data], world)
    command = Command(ID, saga.command, data.model_dump(mode="json"))
    stage, _, _ = play(
        lambda choose: Stage(torture, choose), (), lambda s: s.publish(command), lambda _: []
    )
    found = stage.database.sagas[saga_id_of(ID)]
    return Ended(
        found.row.status,
        found.row.code,
        found.row.message,
        tuple(stage.database.history(found.saga_id)),
        stage.loop.now - found.created_at,
        stage.world,
    )
