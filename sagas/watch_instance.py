"""Watch a place where an instance may still appear.

A create whose outcome stayed unknown was undone while there was nothing to undo. Should it land
after all, minutes later, nobody would own it; so it is looked for again, four times, and removed.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from sagas.definition import Admission, Refusal, Saga, retryable
from sagas.steps.evolution import look_again
from sagas.vocabulary import InstanceName
from sagas.world import World


class WatchInstance(BaseModel):
    """The ``data`` of an ``instance.watch`` command, which the engine gives itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_name: InstanceName
    created_by: UUID
    key_id: str


async def _admit(
    connection: Any, _world: World, commands: Sequence[tuple[UUID, WatchInstance]]
) -> list[Admission | Refusal]:
    """Only what a rolled back create may have left behind: never somebody's working instance."""
    rows = await connection.fetch(
        """
        SELECT saga_id FROM evosaga.sagas
        WHERE saga_id = ANY($1) AND status IN ('compensating', 'compensated', 'failed')
          AND direction IS DISTINCT FROM 'forward'
          AND NOT EXISTS (SELECT FROM healthcare.integrations WHERE id = saga_id)
        """,
        [data.created_by for _, data in commands],
    )
    undone = {row["saga_id"] for row in rows}
    return [
        Admission(f"watch/{data.created_by}", facts=data.model_dump(mode="json"))
        if data.created_by in undone
        else Refusal("not_undone", "no create of that id was rolled back")
        for _, data in commands
    ]


WATCH_INSTANCE: Final = Saga(
    name="watch-instance",
    version=1,
    command="instance.watch",
    input=WatchInstance,
    admit=_admit,
    steps=(
        retryable("look", do=look_again(0)),
        retryable("look-after-a-minute", do=look_again(1)),
        retryable("look-after-five-minutes", do=look_again(2)),
        retryable("look-after-half-an-hour", do=look_again(3)),
    ),
)
