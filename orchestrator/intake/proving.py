"""Our own commands are obeyed when the log proves them, and else nobody has heard of them.

What looks after what a saga can't wait for is started by commands of which nobody is told. Over the
stream they come from the relay alone: as the follow-up that an event has brought with it, under
that event's id. Anybody may write to the stream, so what counts is the log. (What upkeep asks for
goes through the gate, from inside.)
"""

import json
import re
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from events.commands import BadCommand, Command
from events.database import Queryable
from orchestrator.intake.accept import understand, unknown_type
from orchestrator.intake.claiming import Request
from sagas.catalogue import Catalogue

_EVENT_ID: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([0-9]{1,9})")


def needs_proof(catalogue: Catalogue, command: Command) -> bool:
    """Whether it is one of our own, which from outside must be borne out by the log."""
    saga = catalogue.by_command.get(command.type)
    return saga is not None and saga.internal


async def understand_all(
    database: Queryable, catalogue: Catalogue, commands: Sequence[Command]
) -> list[Request | BadCommand]:
    """What each command from outside asks for, or why it is not obeyed, in their order.

    One of our own that nothing proves is answered like one that does not exist. The log is asked
    once, and only if there is one of our own among them.
    """
    ours = [command for command in commands if needs_proof(catalogue, command)]
    proved = await _follow_ups(database, [command.id for command in ours]) if ours else {}
    understood: list[Request | BadCommand] = []
    for command in commands:
        obeyed: Command | None = command
        if needs_proof(catalogue, command):
            # As the relay tells it: an outsider who repeats it can't make it expire, say.
            obeyed = proved.get(command.id)
        try:
            if obeyed is None or obeyed.hash != command.hash:
                raise unknown_type(catalogue, command.type)
            understood.append(understand(catalogue, obeyed))
        except BadCommand as refusal:
            understood.append(refusal)
    return understood


async def _follow_ups(database: Queryable, ids: Sequence[str]) -> dict[str, Command]:
    """The commands that events of these ids have brought with them."""
    fits = [fit for id_ in ids if (fit := _EVENT_ID.fullmatch(id_))]
    rows = await database.fetch(
        _FOLLOW_UPS, [UUID(fit[1]) for fit in fits], [int(fit[2]) for fit in fits]
    )
    found: dict[str, Command] = {}
    for row in rows:
        told, id_ = json.loads(row["follow_up"]), f"{row['saga_id']}:{row['sequence']}"
        found[id_] = Command(id_, told["type"], told["data"], row["correlation_id"], id_)
    return found


_FOLLOW_UPS: Final = """
SELECT saga_id, sequence, correlation_id, data ->> 'follow_up' AS follow_up
FROM unnest($1::uuid[], $2::int[]) AS asked (saga_id, sequence)
JOIN evosaga.saga_events USING (saga_id, sequence)
WHERE data ->> 'follow_up' IS NOT NULL
"""
