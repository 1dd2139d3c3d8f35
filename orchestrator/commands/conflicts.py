"""Commands whose business key is taken, weighed as their definitions declare.

An admission that looks at open sagas itself (``AdmitTogether``) is not asked about again.
"""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from evosaga.events.database import Connection
from evosaga.events.statuses import OPEN_STATUSES
from evosaga.orchestrator.commands.request import Request
from evosaga.sagas.admission import Admission, AdmitTogether, Verdict
from evosaga.sagas.conflicts import BEHIND, OpenSaga, Queues, begun, weigh
from evosaga.sagas.definition import Saga


def is_weighed(saga: Saga) -> bool:
    """Whether there may be a queue at its keys, so that it must look.

    What only refuses, at keys that are its own, is told by the database that its key is taken.
    """
    declares = saga.on_conflict != "refuse" or saga.key_scope is not None
    return declares and not isinstance(saga.admit, AdmitTogether)


async def weigh_all(
    connection: Connection, requests: Sequence[Request], verdicts: Mapping[UUID, Verdict]
) -> dict[UUID, Verdict]:
    """The verdicts on those that are weighed here; the later ones see what the earlier start."""
    wanted = [
        (request, verdict)
        for request in requests
        if is_weighed(request.saga)
        and isinstance(verdict := verdicts[request.saga_id], Admission)
        and verdict.behind is None
    ]
    if not wanted:
        return {}
    keys = [verdict.business_key for _, verdict in wanted]
    names = [verdict.instance_name for _, verdict in wanted if verdict.instance_name]
    mine = [request.saga_id for request, _ in wanted]
    rows = await connection.fetch(_LOOK, keys, names, mine)
    queues = Queues(OpenSaga(**row) for row in rows)
    said: dict[UUID, Verdict] = {}
    for request, verdict in wanted:
        queue = queues.of(verdict.business_key, verdict.instance_name)
        found = weigh(request.saga.on_conflict, request.saga_id, verdict, queue)
        said[request.saga_id] = found
        if isinstance(found, Admission):
            queues.add(begun(request.saga_id, request.saga.name, found))
    return said


_OWN_SUFFIX: Final = len(BEHIND) + 36
"""Characters by which the key of one that waits is longer than the key that it waits for."""
# Three questions instead of one with OR: the first two are answered by unique indexes, the third
# by those that have the few sagas which wait.
_LOOK: Final = f"""
WITH concerned AS (
    SELECT saga_id FROM evosaga.sagas WHERE business_key = ANY($1) AND {OPEN_STATUSES}
    UNION
    SELECT saga_id FROM evosaga.sagas
    WHERE instance_name = ANY($2) AND behind IS NULL AND {OPEN_STATUSES}
    UNION
    SELECT saga_id FROM evosaga.sagas
    WHERE behind IS NOT NULL AND {OPEN_STATUSES}
      AND (left(business_key, -{_OWN_SUFFIX}) = ANY($1) OR instance_name = ANY($2))
)
SELECT saga_id, saga, status, business_key, organization_id, instance_name, step, behind
FROM concerned JOIN evosaga.sagas USING (saga_id)
WHERE saga_id <> ALL($3) ORDER BY created_at, saga_id
"""  # noqa: S608  # constants only
