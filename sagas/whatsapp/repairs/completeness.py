"""Completing an instance: its webhook as its row and its create's command want it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from evosaga.sagas.definition import Admission, Refusal
from evosaga.sagas.outcome import Outcome, Rejected
from evosaga.sagas.whatsapp.evolution.answers import Presence
from evosaga.sagas.whatsapp.evolution.completeness import WantedConfiguration, completed
from evosaga.sagas.whatsapp.evolution.holds import hold_unknown
from evosaga.sagas.whatsapp.evolution.payload import foreign_webhook, own_webhook
from evosaga.sagas.whatsapp.identity import name_of, token_of
from evosaga.sagas.whatsapp.ownership import KeyRing, UnknownKey
from evosaga.sagas.whatsapp.repairs.admission import name_key
from evosaga.sagas.whatsapp.services import Context, Services, evolution_of
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER


@dataclass(frozen=True, slots=True)
class CreateFacts:
    """An integration whose instance a saga of ours has made, and where its events should go.

    ``webhook_url`` is the row's; None: webhooks were off. ``foreign``: the create's command named
    it, so the events go to another receiver, which gets no token of ours.
    """

    id: UUID
    organization_id: UUID
    instance_name: str
    status: str
    enabled: bool
    server: str
    key_id: str
    webhook_url: str | None = None
    foreign: bool = False

    def wish(self, keys: KeyRing) -> WantedConfiguration:
        """What its instance has to be like. Raises ``UnknownKey``."""
        token = keys.instance_token(self.id, self.key_id)
        webhook = _webhook(self.webhook_url, self.id, self.key_id, keys, foreign=self.foreign)
        return WantedConfiguration(self.instance_name, token, webhook, keys.webhook_tokens(self.id))


def _webhook(
    url: str | None, integration_id: UUID, key_id: str, keys: KeyRing, *, foreign: bool
) -> Mapping[str, Any] | None:
    if not url:
        return None
    return foreign_webhook(url) if foreign else own_webhook(url, keys, integration_id, key_id)


async def create_facts(connection: Any, ids: Sequence[UUID]) -> dict[UUID, CreateFacts]:
    """Those of the integrations whose row still names the instance that its saga has made."""
    rows = await connection.fetch(_BORN, ids, DEFAULT_SERVER)
    return {row["id"]: CreateFacts(**row) for row in rows}


async def admit_completion(
    connection: Any, services: Services, commands: Sequence[tuple[UUID, Any]]
) -> list[Admission | Refusal]:
    """Only an instance of ours that its row names and no saga is deleting."""
    known = await create_facts(connection, [data.integration_id for _, data in commands])
    return [_completion(services, data, known.get(data.integration_id)) for _, data in commands]


def _completion(services: Services, data: Any, one: CreateFacts | None) -> Admission | Refusal:
    name = data.instance_name
    if one is None or one.instance_name != name or not one.enabled:
        said = f"no row names the instance {name} as one that a saga has made"
        return Refusal("not_found", said, name_key(name))
    # It touches neither the row nor what else the organization has, so it holds the name alone: a
    # delete of it waits, and a repair of the row does not.
    key, organization = name_key(name), one.organization_id
    if one.status == "deleting":
        return Refusal("deleting", "the integration is being deleted", key, organization, name)
    try:
        one.wish(services.keys)
    except UnknownKey as gone:
        return Refusal("unknown_key", str(gone), key, organization, name)
    facts = {
        "instance_name": name,
        "integration_id": str(one.id),
        "created_by": str(one.id),
        "organization_id": str(organization),
        "key_id": one.key_id,
        "server": one.server,
        "webhook_url": one.webhook_url,
        "foreign": one.foreign,
    }
    return Admission(key, organization, name, facts)


async def complete(ctx: Context) -> Outcome:
    """Set again what the instance lacks, if it is ours and there."""
    name, token = name_of(ctx), token_of(ctx)
    seen = await evolution_of(ctx).see(name, token)
    if seen.sight is Presence.UNKNOWN:
        return hold_unknown(ctx, seen)
    if seen.sight is not Presence.MINE:
        return Rejected("no_longer_so", f"{name} can't be set right: {seen.evidence}")
    id_, keys = UUID(ctx.facts["created_by"]), ctx.services.keys
    url, key_id = ctx.facts["webhook_url"], ctx.facts["key_id"]
    webhook = _webhook(url, id_, key_id, keys, foreign=ctx.facts["foreign"])
    return await completed(
        ctx, WantedConfiguration(name, token, webhook, keys.webhook_tokens(id_)), {}
    )


_BORN: Final = """
SELECT row.id, row.organization_id, row.status::text AS status, row.enabled,
       row.config ->> 'instance_name' AS instance_name,
       row.config ->> 'webhook_url' AS webhook_url,
       coalesce(nullif(row.config ->> 'server', ''), $2) AS server,
       began.facts ->> 'key_id' AS key_id,
       began.input ->> 'webhook_url' IS NOT NULL AS foreign
FROM healthcare.integrations AS row
JOIN evosaga.saga_starts AS began
    ON began.saga_id = row.id AND began.instance_name = row.config ->> 'instance_name'
WHERE row.id = ANY($1) AND row.type = 'whatsapp' AND row.provider = 'evolution'
  AND began.facts ->> 'key_id' <> ''
"""
