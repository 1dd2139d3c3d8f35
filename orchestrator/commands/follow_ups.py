"""Internal commands are accepted only if the log holds them as a follow-up; else they are unknown.

Some sagas are started by commands of our own that are not public. On the stream they come from the
relay alone, as the follow-up of an event, under that event's id. Any client may write to the
stream, so what counts is the log. Scheduled jobs call the command handler directly.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from evosaga.events.commands import BadCommand, Command, saga_id_of
from evosaga.events.database import Queryable
from evosaga.orchestrator.commands.accept import parse_request, unknown_type
from evosaga.orchestrator.commands.claims import Request
from evosaga.sagas.registry import SagaRegistry

_EVENT_ID: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9]{1,9})")


def is_internal(registry: SagaRegistry, command: Command) -> bool:
    """Whether it is one of our own, which from outside must be borne out by the log."""
    saga = registry.by_command.get(command.type)
    return saga is not None and saga.internal


async def resolve_all(
    database: Queryable, registry: SagaRegistry, commands: Sequence[Command]
) -> list[Request | BadCommand]:
    """What each command from outside asks for, or why it is not obeyed, in their order.

    One of our own that nothing proves is answered like one that does not exist. The log is asked
    once, and only if there is one of our own among them.
    """
    ours = [command for command in commands if is_internal(registry, command)]
    proved = await _follow_ups(database, [command.id for command in ours]) if ours else {}
    understood: list[Request | BadCommand] = []
    for command in commands:
        obeyed: Command | None = command
        if is_internal(registry, command):
            # As the relay tells it: an outsider who repeats it can't make it expire, say.
            obeyed = proved.get(command.id)
        try:
            if obeyed is None or obeyed.hash != command.hash:
                raise unknown_type(registry, command.type)
            understood.append(parse_request(registry, obeyed))
        except BadCommand as refusal:
            understood.append(refusal)
    return understood


async def as_told(database: Queryable, command: Command) -> Command:
    """The command as an event has brought it, if one has."""
    if not _EVENT_ID.fullmatch(command.id):
        return command
    told = (await _follow_ups(database, [command.id])).get(command.id)
    return told if told is not None and told.hash == command.hash else command


async def _follow_ups(database: Queryable, ids: Sequence[str]) -> dict[str, Command]:
    """The commands that events of these ids have brought with them."""
    fits = [fit for id_ in ids if (fit := _EVENT_ID.fullmatch(id_))]
    rows = await database.fetch(
        _FOLLOW_UPS,
        [UUID(fit[1]) for fit in fits],
        [int(fit[2]) for fit in fits],
        [saga_id_of(fit[0]) for fit in fits],
    )
    found: dict[str, Command] = {}
    for row in rows:
        told, id_ = json.loads(row["follow_up"]), f"{row['saga_id']}:{row['sequence']}"
        command = Command(id_, told["type"], told["data"], row["correlation_id"], id_)
        # Older releases have counted these ids among everybody's; what is stored stays there.
        found[id_] = replace(command, follow_up=row["stored"] != command.hash)
    return found


_FOLLOW_UPS: Final = """
SELECT saga_id, sequence, event.correlation_id, event.data ->> 'follow_up' AS follow_up,
       (SELECT command_hash FROM evosaga.sagas AS stored
        WHERE stored.saga_id = asked.plain
          AND stored.command_id = asked.saga_id || ':' || asked.sequence) AS stored
FROM unnest($1::uuid[], $2::int[], $3::uuid[]) AS asked (saga_id, sequence, plain)
JOIN evosaga.saga_events AS event USING (saga_id, sequence)
WHERE event.data ->> 'follow_up' IS NOT NULL
"""
