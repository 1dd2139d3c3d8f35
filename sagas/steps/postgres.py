"""Rows of ``healthcare.integrations``. Every effect here joins the commit of its event.

The id of a row is the id of the saga that made it, which is what ties an instance on Evolution,
its row and its history together. Effects are set-based: many sagas share one statement.
"""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sagas.definition import Admission, Refusal
from sagas.outcome import Done, Outcome, Rejected
from sagas.world import StepContext, World


def business_key(organization_id: UUID) -> str:
    """What only one open saga may hold: an organization's WhatsApp integration."""
    return f"whatsapp/evolution/{organization_id}"


async def save_integrations(connection: Any, contexts: Sequence[StepContext]) -> list[Outcome]:
    """Insert the rows. The partial unique index, not a look beforehand, refuses a second one."""
    saved = await connection.fetch(
        """
        INSERT INTO healthcare.integrations
            (id, organization_id, type, provider, status, enabled, config, webhook_token)
        SELECT id, organization_id, 'whatsapp', 'evolution', 'pending', true, config::jsonb, token
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])
            AS new (id, organization_id, config, token)
        ORDER BY organization_id
        ON CONFLICT DO NOTHING RETURNING id
        """,
        [c.saga_id for c in contexts],
        [c.input.organization_id for c in contexts],
        [json.dumps(_config(c), ensure_ascii=False) for c in contexts],
        [c.world.keys.webhook_token(c.saga_id, c.facts["key_id"]) for c in contexts],
    )
    ids = {row["id"] for row in saved}
    return [
        Done({"integration_id": str(c.saga_id)})
        if c.saga_id in ids
        else Rejected("integration_exists", "another row was made for this organization meanwhile")
        for c in contexts
    ]


async def unsave_integrations(connection: Any, contexts: Sequence[StepContext]) -> list[Outcome]:
    """Take back the rows that ``save_integrations`` made; only the saga's own."""
    return await _delete_rows(connection, [c.saga_id for c in contexts])


async def mark_deleting(connection: Any, contexts: Sequence[StepContext]) -> list[Outcome]:
    """From now on everybody can see that the integration is going away."""
    marked = await connection.fetch(
        "UPDATE healthcare.integrations SET status = 'deleting', updated_at = now() "
        "WHERE id = ANY($1) RETURNING id",
        [UUID(c.facts["integration_id"]) for c in contexts],
    )
    ids = {str(row["id"]) for row in marked}
    return [
        Done()
        if c.facts["integration_id"] in ids
        else Rejected("not_found", "the integration's row is gone already")
        for c in contexts
    ]


async def unmark_deleting(connection: Any, contexts: Sequence[StepContext]) -> list[Outcome]:
    """The deletion was called off: back to what the row said before."""
    await connection.execute(
        """
        UPDATE healthcare.integrations AS row SET status = old.status, updated_at = now()
        FROM unnest($1::uuid[], $2::text[]) AS old (id, status)
        WHERE row.id = old.id AND row.status = 'deleting'
        """,
        [UUID(c.facts["integration_id"]) for c in contexts],
        [c.facts["status"] for c in contexts],
    )
    return [Done() for _ in contexts]


async def delete_integrations(connection: Any, contexts: Sequence[StepContext]) -> list[Outcome]:
    """Delete the rows; one that is gone already is as good."""
    return await _delete_rows(connection, [UUID(c.facts["integration_id"]) for c in contexts])


async def _delete_rows(connection: Any, ids: Sequence[UUID]) -> list[Outcome]:
    deleted = await connection.fetch(
        "DELETE FROM healthcare.integrations WHERE id = ANY($1) RETURNING id", ids
    )
    gone = {row["id"] for row in deleted}
    return [Done({"deleted": id_ in gone}) for id_ in ids]


async def admit_create(
    connection: Any, world: World, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """One integration an organization, one owner a name: look before anything is touched."""
    names = [_instance_name(saga_id, data) for saga_id, data in commands]
    rows = await connection.fetch(
        """
        SELECT id, organization_id, enabled, config ->> 'instance_name' AS instance_name
        FROM healthcare.integrations
        WHERE type = 'whatsapp' AND provider = 'evolution'
          AND ((organization_id = ANY($1) AND enabled) OR config ->> 'instance_name' = ANY($2))
        """,
        [data.organization_id for _, data in commands],
        names,
    )
    of_organization = {row["organization_id"]: row for row in rows if row["enabled"]}
    taken = {row["instance_name"] for row in rows}
    return [
        _admission(
            world, saga_id, data, name, of_organization.get(data.organization_id), name in taken
        )
        for (saga_id, data), name in zip(commands, names, strict=True)
    ]


def _admission(
    world: World, saga_id: UUID, data: Any, name: str, existing: Any, taken: bool
) -> Admission | Refusal:
    key = business_key(data.organization_id)
    if data.webhook_url and urlsplit(data.webhook_url).hostname not in world.webhook_hosts:
        message = "webhook_url names a host that EVOSAGA_WEBHOOK_HOSTS does not list"
        return Refusal("webhook_host", message, key, data.organization_id, name)
    if existing is not None:
        return Refusal(
            "integration_exists",
            "WhatsApp integration already exists for this organization",
            key,
            data.organization_id,
            name,
            existing["instance_name"],
        )
    if taken:
        message = f"another integration uses the instance name {name}"
        return Refusal("name_taken", message, key, data.organization_id, name)
    facts = {"instance_name": name, "created_by": str(saga_id), "key_id": world.keys.current}
    return Admission(key, data.organization_id, name, facts)


async def admit_delete(
    connection: Any, _world: World, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """Find the rows to delete, and under which key their instances got their birthmark."""
    rows = await connection.fetch(
        """
        SELECT row.id, row.organization_id, row.status, row.config, born.data AS born
        FROM healthcare.integrations AS row
        LEFT JOIN evosaga.saga_events AS born
            ON born.saga_id = row.id AND born.sequence = 0 AND born.type = 'saga.started'
        WHERE row.config ->> 'instance_name' = ANY($1)
        ORDER BY row.enabled, row.updated_at
        """,
        [data.instance_name for _, data in commands],
    )
    found = {json.loads(row["config"])["instance_name"]: row for row in rows}
    return [_deletion(data, found.get(data.instance_name)) for _, data in commands]


def _deletion(data: Any, row: Any) -> Admission | Refusal:
    # Somebody else's integration looks exactly like none at all.
    if row is None or data.organization_id not in (None, row["organization_id"]):
        return Refusal(
            "not_found",
            f"no integration has the instance {data.instance_name}",
            f"whatsapp/evolution/instance/{data.instance_name}",
            data.organization_id,
            data.instance_name,
        )
    facts = {
        "instance_name": data.instance_name,
        "integration_id": str(row["id"]),
        "created_by": str(row["id"]),
        "status": row["status"],
        "clinic_id": json.loads(row["config"]).get("clinic_id"),
        "organization_id": str(row["organization_id"]),
    }
    if row["born"]:
        facts["key_id"] = json.loads(row["born"])["facts"]["key_id"]
    organization = row["organization_id"]
    return Admission(business_key(organization), organization, data.instance_name, facts)


def _instance_name(saga_id: UUID, data: Any) -> str:
    """Derived from the saga id unless given: such a name is never used twice."""
    return data.instance_name or f"wa-{saga_id}"


def _config(ctx: StepContext) -> dict[str, Any]:
    config = {
        "instance_name": ctx.facts["instance_name"],
        "clinic_id": str(ctx.input.clinic_id),
        "name": ctx.input.name,
        "channel": ctx.input.channel,
    }
    url = ctx.input.webhook_url or (
        f"{ctx.world.public_url}/webhooks/evolution/{ctx.facts['instance_name']}"
        if ctx.world.public_url
        else None
    )
    return config | ({"webhook_url": url} if url else {})
