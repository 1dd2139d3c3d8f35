"""One integration in each of its three stores, read at the same moment."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from redis.exceptions import RedisError

from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.whatsapp.integrations import connection
from evosaga.orchestrator.whatsapp.integrations.queries import IntegrationView
from evosaga.sagas.whatsapp.evolution.answers import Presence as Sight
from evosaga.sagas.whatsapp.ownership import UnknownKey
from evosaga.sagas.whatsapp.steps import routing_key
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

Presence = Literal["there", "absent", "foreign", "half", "unknown"]

_PATIENCE: Final = 4.0


@dataclass(frozen=True, slots=True)
class Store:
    """The content of one store. ``facts`` are its values, by name."""

    name: str
    what: str
    presence: Presence
    said: str
    facts: Sequence[tuple[str, str]] = ()


async def look(
    here: AppContext, instance_name: str, row: IntegrationView | None, born: UUID | None
) -> list[Store]:
    """Read Evolution, Postgres and Redis. ``born`` is the saga that made the instance, if any."""
    evolution, redis = await asyncio.gather(
        _evolution(here, instance_name, row, born), _redis(here, instance_name)
    )
    return [evolution, _postgres(row), redis]


def agreement(stores: Sequence[Store], *, busy: bool) -> tuple[Literal["ok", "warn"], str]:
    """Whether the three agree, in a sentence. ``busy``: a saga is working on the integration."""
    seen = {store.name: store.presence for store in stores}
    if "unknown" in seen.values():
        return "warn", "Not all of them can be asked right now."
    instance, row, key = seen["Evolution"], seen["Postgres"], seen["Redis"]
    if instance == row == "there":
        if key == "there":
            return "ok", "All three agree: it is there."
        return "ok", "It is there. The routing key is filled again when it is needed."
    if instance == row == key == "absent":
        return "ok", "All three agree: nothing is left of it."
    if busy:
        return "warn", "They differ while a saga is running, as is to be expected."
    return "warn", "They differ, and no saga is running."


async def _evolution(
    here: AppContext, instance_name: str, row: IntegrationView | None, born: UUID | None
) -> Store:
    try:
        async with asyncio.timeout(_PATIENCE):
            made = await here.pool.fetchrow(_MADE, born, instance_name) if born else None
            if born is None or made is None or made["key_id"] is None:
                return await _older(here, instance_name)
            token = here.services.keys.instance_token(born, made["key_id"])
            server = row.server if row else made["server"]
            seen = await here.services.server(server).see(instance_name, token)
    except TimeoutError:
        return _instance("unknown", "No answer in time")
    except UnknownKey as error:
        return _instance("unknown", f"It was {error}")
    state = seen.answer.instance.said if seen.answer.instance else None
    facts = [("connection", state)] if seen.sight is Sight.MINE and state else []
    return _instance(*_SIGHTS[seen.sight], facts)


async def _older(here: AppContext, instance_name: str) -> Store:
    """An instance without an ownership mark: the row names its owner, the list if it exists."""
    found = await connection.integrations(here.pool, names=[instance_name])
    if not found:
        return _instance("unknown", "Nothing tells which instance was meant")
    seen = await connection.observe(
        here.services.server(found[0].server), here.services.keys, found[0]
    )
    match seen.state:
        case "absent":
            return _instance("absent", "It is not there")
        case "unknown":
            return _instance(*_SIGHTS[Sight.UNKNOWN])
    return _instance("there", "It is there; older code made it", [("connection", seen.state)])


def _instance(presence: Presence, said: str, facts: Sequence[tuple[str, str]] = ()) -> Store:
    return Store("Evolution", "the instance", presence, said, facts)


_SIGHTS: Final[dict[Sight, tuple[Presence, str]]] = {
    Sight.MINE: ("there", "It is there, with our ownership token"),
    Sight.FOREIGN: ("foreign", "An instance of that name is there, with another owner's token"),
    Sight.ABSENT: ("absent", "Neither of its two views has it"),
    Sight.HALF: ("half", "One of its two views has it, the other not"),
    Sight.UNKNOWN: ("unknown", "It does not answer clearly"),
}


def _postgres(row: IntegrationView | None) -> Store:
    if row is None:
        return Store("Postgres", "the row", "absent", "There is no row")
    facts = {
        "status": row.status,
        "enabled": "yes" if row.enabled else "no",
        "name": row.name,
        "number": row.whatsapp_number,
        "channel": row.channel,
        "clinic_id": row.clinic_id,
        "organization_id": str(row.organization_id) if row.organization_id else None,
        "webhook_url": row.webhook_url,
        "server": row.server if row.server != DEFAULT_SERVER else None,
    }
    held = [(name, value) for name, value in facts.items() if value]
    return Store("Postgres", "the row", "there", "It is there", held)


async def _redis(here: AppContext, instance_name: str) -> Store:
    def told(presence: Presence, said: str, facts: Sequence[tuple[str, str]] = ()) -> Store:
        return Store("Redis", "the routing key", presence, said, facts)

    name = routing_key.key(instance_name)
    try:
        async with asyncio.timeout(_PATIENCE):
            pipeline = here.redis.pipeline(transaction=False)
            pipeline.get(name)
            pipeline.ttl(name)
            raw, left = await pipeline.execute()
    except (RedisError, OSError, TimeoutError):
        return told("unknown", "Redis does not answer")
    if raw is None:
        return told("absent", "There is no key")
    return told("there", f"It is there, for another {max(1, int(left) // 60)} min", _facts(raw))


def _facts(raw: bytes) -> list[tuple[str, str]]:
    try:
        value: Any = json.loads(raw)
    except ValueError:
        return []
    return [(str(k), str(v)) for k, v in value.items() if v] if isinstance(value, dict) else []


_MADE: Final = """
SELECT facts ->> 'key_id' AS key_id, coalesce(facts ->> 'server', 'default') AS server
FROM evosaga.saga_starts WHERE saga_id = $1 AND instance_name = $2
"""
