"""Watch a place where an instance may still appear.

A create whose outcome stayed unknown was undone while there was nothing to undo, or it was sent
again, succeeded, and was deleted. Should the lost one land after all, minutes later, no saga
would own it; so it is looked for again, four times, and removed.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from evosaga.sagas.definition import Admission, Refusal, Saga, retryable
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.steps.instance_removal import look_again
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER, SHAPES, InstanceName, ServerName


class WatchInstance(BaseModel):
    """The ``data`` of an ``instance.watch`` command, which the engine gives itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_name: InstanceName
    created_by: UUID
    key_id: str
    server: ServerName = Field(DEFAULT_SERVER, exclude_if=lambda server: server == DEFAULT_SERVER)


async def _admit(
    connection: Any, _world: Services, commands: Sequence[tuple[UUID, WatchInstance]]
) -> list[Admission | Refusal]:
    """Only what may be left of a create that was rolled back, or of an integration that a delete
    has removed: never a working instance of another.
    """
    rows = await connection.fetch(_GONE, [data.created_by for _, data in commands])
    undone = {row["saga_id"] for row in rows}
    return [
        Admission(
            f"watch/{data.created_by}",
            facts=data.model_dump(mode="json") | {"server": data.server},
        )
        if data.created_by in undone
        else Refusal("not_undone", "no create of that id was rolled back, or deleted since")
        for _, data in commands
    ]


_GONE: Final = """
SELECT saga_id FROM evosaga.sagas AS made
WHERE saga_id = ANY($1) AND saga = 'create-integration'
  AND NOT EXISTS (SELECT FROM healthcare.integrations WHERE id = saga_id)
  AND (status IN ('compensating', 'compensated', 'failed') AND direction IS DISTINCT FROM 'forward'
       OR status = 'completed' AND EXISTS (
           SELECT FROM evosaga.sagas AS deletion
           JOIN evosaga.saga_starts AS born ON born.saga_id = deletion.saga_id
           WHERE deletion.instance_name = made.instance_name
             AND deletion.created_at >= made.created_at AND deletion.saga = 'delete-integration'
             AND born.facts ->> 'created_by' = made.saga_id::text
             AND EXISTS (SELECT FROM evosaga.saga_events AS told
                         WHERE told.saga_id = deletion.saga_id AND told.type = 'step.succeeded'
                           AND told.data ->> 'step' = 'postgres')))
"""


WATCH_INSTANCE: Final = Saga(
    name="watch-instance",
    version=1,
    command="instance.watch",
    internal=True,
    background=True,
    input=WatchInstance,
    patterns=SHAPES,
    admit=_admit,
    steps=(
        retryable("look", do=look_again(0)),
        retryable("look-after-a-minute", do=look_again(1)),
        retryable("look-after-five-minutes", do=look_again(2)),
        retryable("look-after-half-an-hour", do=look_again(3)),
    ),
)
