"""An integration's connection to WhatsApp: observe it, and update its row.

Evolution's memory knows the state at once, its database the phone number a moment later, and
neither is asked about an instance that is not ours. The row is written only if the row is
still as it was when the look began, so a slow look never overwrites what a later one found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg

from evosaga.events.database import Pool, Queryable
from evosaga.sagas.whatsapp import integration_events
from evosaga.sagas.whatsapp.evolution.answers import Presence
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.models import ListedInstance, UnreadableList
from evosaga.sagas.whatsapp.integration_events import Notice
from evosaga.sagas.whatsapp.ownership import KeyRing, UnknownKey
from evosaga.sagas.whatsapp.row_status import FINAL_CODES, after_observation, ended
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

PASSIVE: Final = "EVOLUTION"
"""A channel without a phone: open as soon as it is there."""


@dataclass(frozen=True, slots=True)
class Integration:
    """A row of ``healthcare.integrations``, and what proves that its instance is ours.

    ``key_id`` is the secret key under which the instance got its token; None when older code made
    it.
    """

    id: UUID
    organization_id: UUID
    instance_name: str
    channel: str
    status: str
    whatsapp_number: str | None
    updated_at: datetime | None
    key_id: str | None = None
    server: str = DEFAULT_SERVER
    """The Evolution server that its instance lives on."""

    def token(self, keys: KeyRing) -> str | None:
        """The instance's own token, if we can derive it."""
        try:
            return keys.instance_token(self.id, self.key_id) if self.key_id else None
        except UnknownKey:
            return None


@dataclass(frozen=True, slots=True)
class ConnectionObservation:
    """What a look found. ``unknown`` proves nothing; ``absent`` also means: not ours."""

    state: Literal["open", "connecting", "close", "absent", "unknown"]
    number: str | None = None
    """The digits of the phone that is connected, or was last."""
    reason: int | None = None
    """Why the connection ended last, as a code of WhatsApp's."""
    recorded: bool = False
    """Whether Evolution's database says "open". When the instance is open, ``number`` is today's
    then; when it is not, its phone is still paired, and Evolution is trying to reach it again."""
    linked: bool = False
    """Whether its database knows a phone, even one that hides its number behind a LID."""
    token: str | None = field(default=None, repr=False)
    """The instance's own token, ours or the one that Evolution lists for an older instance."""

    def paired(self, channel: str) -> bool:
        """Whether a phone is connected; an instance that is open may still have none."""
        if channel == PASSIVE:
            return self.state == "open"
        return self.state == "open" and self.recorded and (self.number is not None or self.linked)


async def integrations(
    pool: Queryable, *, ids: Sequence[UUID] = (), names: Sequence[str] = ()
) -> list[Integration]:
    """The integrations with these ids or these instances' names. Of a name only the one in use."""
    return [_integration(row) for row in await pool.fetch(_SELECT, list(ids), list(names))]


async def observe(
    evolution: EvolutionApi, keys: KeyRing, integration: Integration
) -> ConnectionObservation:
    """Ask its Evolution server how the instance is; two short calls, or a list for an older one.

    Raises only what keeps a worker from acting that is not in charge any more.
    """
    token, name = integration.token(keys), integration.instance_name
    row: ListedInstance | None = None
    if token is None:
        listed = await evolution.instances()
        if listed.status != 200:
            return ConnectionObservation("unknown")
        try:
            row = listed.listed(name)
        except UnreadableList:
            return ConnectionObservation("unknown")
        if row is None or row.token is None:
            return ConnectionObservation("absent" if row is None else "unknown")
        token = row.token
    seen = await evolution.see(name, token)
    if seen.sight in (Presence.ABSENT, Presence.FOREIGN):
        return ConnectionObservation("absent")
    state = seen.answer.instance.state if seen.answer.instance else None
    if seen.sight is not Presence.MINE or state is None:
        return ConnectionObservation("unknown")
    if row is None:
        own = (await evolution.own_rows(token)).instances
        row = own.get(name) if own else None
    if row is None:
        return ConnectionObservation(state, token=token)
    return ConnectionObservation(
        state,
        row.phone,
        row.reason,
        recorded=row.status == "open",
        linked=row.linked,
        token=token,
    )


def status_after(integration: Integration, seen: ConnectionObservation) -> tuple[str, str | None]:
    """Status and number that the row should have. Pure.

    While Evolution reconnects, its memory flickers and its database goes on saying "open".
    """
    paired = seen.paired(integration.channel)
    over = seen.state == "close" and (integration.channel == PASSIVE or not seen.recorded)
    status = after_observation(integration.status, paired=paired, over=over)
    known = integration.whatsapp_number
    return status, seen.number or known if paired and status == "connected" else known


async def apply_observation(
    pool: Pool, integration: Integration, seen: ConnectionObservation
) -> Literal["changed", "same", "lost"]:
    """Let the row say what was seen, and record the notice, in one transaction.

    ``lost``: the row has changed since it was read; read it again and look again. Raises what
    Postgres raises.
    """
    status, number = status_after(integration, seen)
    if (status, number) == (integration.status, integration.whatsapp_number):
        return "same"
    async with pool.acquire() as connection, connection.transaction():
        written = await connection.fetchval(
            _SETTLE,
            integration.id,
            status,
            number,
            integration.status,
            integration.updated_at,
        )
        if written is None:
            return "lost"
        await integration_events.record(connection, [_notice(integration, status, seen)])
    return "changed"


def _notice(integration: Integration, status: str, seen: ConnectionObservation) -> Notice:
    data: dict[str, Any] = {"status": status, "before": integration.status}
    if status == "disconnected" and seen.reason is not None:
        data["reason"] = seen.reason
        if seen.reason in FINAL_CODES:
            data["state"] = ended(seen.reason)
    return Notice(
        integration.id,
        integration.organization_id,
        integration.instance_name,
        f"integration.{status}",
        data,
    )


def _integration(row: asyncpg.Record) -> Integration:
    return Integration(
        id=row["id"],
        organization_id=row["organization_id"],
        instance_name=row["instance_name"],
        channel=row["channel"] or "WHATSAPP-BAILEYS",
        status=row["status"],
        whatsapp_number=row["whatsapp_number"],
        updated_at=row["updated_at"],
        key_id=row["key_id"],
        server=row["server"] or DEFAULT_SERVER,
    )


# A row that has adopted an older instance keeps the id of the saga that made another one.
_SELECT: Final = """
SELECT row.id, row.organization_id, row.config ->> 'instance_name' AS instance_name,
       row.config ->> 'channel' AS channel, coalesce(row.status::text, 'pending') AS status,
       row.whatsapp_number, row.updated_at,
       row.config ->> 'server' AS server, born.facts ->> 'key_id' AS key_id
FROM healthcare.integrations AS row
LEFT JOIN evosaga.saga_starts AS born
    ON born.saga_id = row.id AND born.instance_name = row.config ->> 'instance_name'
WHERE row.type = 'whatsapp' AND row.provider = 'evolution'
  AND row.config ->> 'instance_name' IS NOT NULL AND row.organization_id IS NOT NULL
  AND (row.id = ANY($1) OR (row.enabled AND row.config ->> 'instance_name' = ANY($2)))
"""
_SETTLE: Final = """
UPDATE healthcare.integrations SET status = $2, whatsapp_number = $3, updated_at = now()
WHERE id = $1 AND coalesce(status::text, 'pending') = $4 AND updated_at IS NOT DISTINCT FROM $5
RETURNING true
"""
