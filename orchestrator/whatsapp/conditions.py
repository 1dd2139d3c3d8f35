"""What is wrong with phones and Evolution servers, as conditions of alerts."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from evosaga.events.alerts import Condition
from evosaga.events.database import Queryable
from evosaga.orchestrator.queries.attention import counted
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, WELL
from evosaga.sagas.whatsapp.services import Services

PHONES: Final = "phones"
"""The code of alerts about integrations that are away."""
_SHOWN: Final = 20
_OPEN_LONG: Final = 60.0
"""Seconds that a circuit breaker may be open; a restart of Evolution takes less."""


async def of_integrations(pool: Queryable) -> list[Condition]:
    """The phones that have been away for so long that somebody should know, by how they are."""
    rows = await pool.fetch(_AWAY, list(WELL), _SHOWN)
    return [_phones(row["state"], row["number"], row["ids"], row["names"]) for row in rows]


def disconnected(state: str, integration_id: UUID, instance_name: str) -> Condition:
    """The same for one of them, at the moment in which that is found."""
    return _phones(state, 1, [integration_id], [instance_name])


def _phones(state: str, number: int, ids: Sequence[UUID], names: Sequence[str]) -> Condition:
    verb = "has" if number == 1 else "have"
    return Condition(
        f"phones/{state}",
        PHONES,
        f"{counted(number, 'integration')} {verb} not been connected for long: {state}",
        CURES.get(state, "which, and what to do: evosaga health"),
        reason=state,
        count=number,
        data={
            "state": state,
            "integrations": [
                {"integration_id": str(id_), "instance_name": name}
                for id_, name in zip(ids, names, strict=True)
            ],
        },
    )


def of_servers(services: Services) -> list[Condition]:
    """The Evolution servers that this process has not been able to use for long."""
    found = []
    for name, server in services.servers.items():
        now = server.state
        if now.state == "closed" or now.since_seconds < _OPEN_LONG:
            continue
        data: dict[str, Any] = {"server": name, "reason": now.reason}
        said = f"the Evolution server {name} can't be used: {now.reason or 'no reason'}"
        cure = "look at the server; its sagas wait, and go on by themselves"
        found.append(
            Condition(f"breaker/{name}", "breaker", said, cure, "critical", after=0.0, data=data)
        )
    return found


_AWAY: Final = """
SELECT seen.state, count(*) AS number,
       (array_agg(row.id ORDER BY seen.since DESC))[:$2] AS ids,
       (array_agg(coalesce(row.config ->> 'instance_name', '') ORDER BY seen.since DESC))[:$2]
           AS names
FROM evosaga.connections AS seen
JOIN healthcare.integrations AS row ON row.id = seen.integration_id
WHERE seen.alerted_at IS NOT NULL AND NOT seen.state = ANY($1) AND row.enabled
  AND row.status::text IS DISTINCT FROM 'deleting'
GROUP BY seen.state
"""
