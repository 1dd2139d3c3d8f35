"""Admission of repairs: only while what a repair mends is still so in Postgres.

The look that a repair rests on is some time ago. Admission looks again, inside the accepting
transaction, and from then on the saga holds the instance's name (and the organization's key, if it
is about a row), so no create or delete can come in between.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from evosaga.sagas.definition import Admission, Refusal
from evosaga.sagas.whatsapp.arbitration import business_key
from evosaga.sagas.whatsapp.ownership import UnknownKey
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER, server_entry


def name_key(instance_name: str) -> str:
    """The business key of a repair that concerns an instance and no row."""
    return f"whatsapp/evolution/instance/{instance_name}"


async def admit_removal(
    connection: Any, services: Services, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """Only an instance that no row names, and only a saga that is over can have left it."""
    named = await connection.fetch(
        "SELECT DISTINCT config ->> 'instance_name' AS name FROM healthcare.integrations "
        "WHERE config ->> 'instance_name' = ANY($1)",
        [data.instance_name for _, data in commands],
    )
    over = await connection.fetch(
        "SELECT saga_id FROM evosaga.sagas WHERE saga_id = ANY($1) "
        "AND saga = 'create-integration' AND status IN ('completed', 'compensated')",
        [data.created_by for _, data in commands if data.created_by],
    )
    in_use = {row["name"] for row in named}
    makers = {row["saga_id"] for row in over}
    return [_removal(services, *command, in_use, makers) for command in commands]


def _removal(
    services: Services, saga_id: UUID, data: Any, in_use: set[str], makers: set[UUID]
) -> Admission | Refusal:
    name, organization = data.instance_name, data.organization_id
    refused = {
        "in_use": (name in in_use, f"a row names the instance {name}"),
        "not_over": (
            data.created_by is not None and data.created_by not in makers,
            "no create of that id is over",
        ),
        "unknown_key": (not _known(services, data), "its secret key is not configured any more"),
    }
    for code, (so, message) in refused.items():
        if so:
            return Refusal(code, message, name_key(name), organization, name)
    facts: dict[str, Any] = {
        "instance_name": name,
        "created_by": str(data.created_by or saga_id),
        "organization_id": str(organization) if organization else None,
        "server": data.server,
    }
    if data.created_by is not None:
        facts["key_id"] = data.key_id
    else:
        facts["token_hash"] = data.token_hash
    return Admission(name_key(name), organization, name, facts)


def _known(services: Services, data: Any) -> bool:
    if data.created_by is None:
        return True
    try:
        services.keys.instance_token(data.created_by, data.key_id)
    except UnknownKey:
        return False
    return True


async def admit_correction(
    connection: Any, _world: Services, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """Only a row that still names the instance and is not being deleted."""
    rows = await _rows(connection, [data.integration_id for _, data in commands])
    return [_correction(data, rows.get(data.integration_id)) for _, data in commands]


def _correction(data: Any, row: Mapping[str, Any] | None) -> Admission | Refusal:
    name = data.instance_name
    if row is None or row["instance_name"] != name or not row["enabled"]:
        return Refusal("not_found", f"no such row names the instance {name}", name_key(name))
    organization = row["organization_id"]
    if row["status"] == "deleting":
        message = "the integration is being deleted"
        return Refusal("deleting", message, business_key(organization), organization, name)
    return Admission(business_key(organization), organization, name, _facts(row))


async def admit_adoption(
    connection: Any, services: Services, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """A row of the organization that may name another instance, or one that the log remembers."""
    ids = [data.integration_id for _, data in commands]
    rows = await _rows(connection, ids)
    taken = await connection.fetch(
        "SELECT id, config ->> 'instance_name' AS name FROM healthcare.integrations "
        "WHERE config ->> 'instance_name' = ANY($1)",
        [data.instance_name for _, data in commands],
    )
    born = await connection.fetch(
        "SELECT saga_id, input, facts FROM evosaga.saga_starts WHERE saga_id = ANY($1)",
        ids,
    )
    owners = {row["name"]: row["id"] for row in taken}
    beginnings = {
        row["saga_id"]: {name: json.loads(row[name] or "{}") for name in ("input", "facts")}
        for row in born
    }
    return [
        _adoption(
            services,
            data,
            rows.get(data.integration_id),
            owners.get(data.instance_name, data.integration_id),
            beginnings.get(data.integration_id, {}),
        )
        for _, data in commands
    ]


def _adoption(
    services: Services,
    data: Any,
    row: Mapping[str, Any] | None,
    owner: UUID,
    born: Mapping[str, Any],
) -> Admission | Refusal:
    name, organization = data.instance_name, data.organization_id
    key = business_key(organization)
    refusal = Refusal("not_found", "no row can name it", key, organization, name)
    if owner != data.integration_id:
        return refusal
    if row is not None:
        if row["organization_id"] != organization or row["status"] == "deleting":
            return refusal
        facts = _facts(row) | {"instance_name": name, "server": data.server}
        return Admission(key, organization, name, facts)
    wanted, facts = born.get("input", {}), born.get("facts", {})
    if not born and data.channel is not None:
        return _forgotten(services, data)
    mine = wanted.get("organization_id") == str(organization)
    there = facts.get("server", DEFAULT_SERVER) == data.server
    same = there and facts.get("instance_name") == name
    if not mine or not same or not _keeps(services, data, facts):
        return refusal
    config = {
        "instance_name": name,
        "clinic_id": wanted["clinic_id"],
        "name": wanted["name"],
        "channel": wanted["channel"],
    }
    if wanted.get("webhook_url"):
        config["webhook_url"] = wanted["webhook_url"]
    elif services.public_url:
        config["webhook_url"] = f"{services.public_url}/webhooks/evolution/{name}"
    config |= server_entry(data.server)
    return Admission(
        key,
        organization,
        name,
        {
            "instance_name": name,
            "integration_id": str(data.integration_id),
            "created_by": str(data.integration_id),
            "organization_id": str(organization),
            "clinic_id": wanted["clinic_id"],
            "key_id": facts["key_id"],
            "server": data.server,
            "config": config,
        },
    )


def _forgotten(services: Services, data: Any) -> Admission | Refusal:
    """An instance that a person gave to an organization, and of which nothing else is known."""
    name, organization, key = data.instance_name, data.organization_id, data.key_id
    facts = {
        "instance_name": name,
        "integration_id": str(data.integration_id),
        "created_by": str(data.integration_id),
        "organization_id": str(organization),
        "key_id": key or services.keys.current,
        "server": data.server,
        "config": {"instance_name": name, "channel": data.channel, **server_entry(data.server)},
    }
    if not _keeps(services, data, facts):
        message = "its secret key is not configured any more"
        return Refusal("unknown_key", message, business_key(organization), organization, name)
    return Admission(business_key(organization), organization, name, facts)


def _keeps(services: Services, data: Any, facts: Mapping[str, Any]) -> bool:
    """Whether the webhook token of the row can be had again."""
    try:
        services.keys.webhook_token(data.integration_id, facts.get("key_id", ""))
    except UnknownKey:
        return False
    return True


async def admit_dropping(
    _connection: Any, _world: Services, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """Always: the next reader fills the key again from Postgres."""
    return [
        Admission(
            f"whatsapp/evolution/key/{data.instance_name}",
            facts={"instance_name": data.instance_name},
        )
        for _, data in commands
    ]


async def _rows(connection: Any, ids: Sequence[UUID]) -> dict[UUID, Mapping[str, Any]]:
    """Integrations by id, and under which key their instances got their birthmark."""
    rows = await connection.fetch(
        """
        SELECT row.id, row.organization_id, row.enabled,
               coalesce(row.status::text, 'pending') AS status,
               row.config ->> 'instance_name' AS instance_name,
               row.config ->> 'clinic_id' AS clinic_id,
               coalesce(nullif(row.config ->> 'server', ''), $2) AS server,
               born.facts ->> 'key_id' AS key_id
        FROM healthcare.integrations AS row
        LEFT JOIN evosaga.saga_starts AS born
            ON born.saga_id = row.id AND born.instance_name = row.config ->> 'instance_name'
        WHERE row.id = ANY($1) AND row.organization_id IS NOT NULL
          AND row.type = 'whatsapp' AND row.provider = 'evolution'
        """,
        ids,
        DEFAULT_SERVER,
    )
    return {row["id"]: row for row in rows}


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "instance_name": row["instance_name"],
        "before": row["instance_name"],
        "integration_id": str(row["id"]),
        "created_by": str(row["id"]),
        "organization_id": str(row["organization_id"]),
        "clinic_id": row["clinic_id"],
        "status": row["status"],
        "server": row["server"],
    }
    return facts | ({"key_id": row["key_id"]} if row["key_id"] else {})
