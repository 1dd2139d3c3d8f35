"""Connection records in Postgres, and the rows of ``healthcare.integrations`` that follow them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final, TypeAlias
from uuid import UUID, uuid4

from evosaga.events.database import Connection, Pool
from evosaga.orchestrator.whatsapp.health import alerts
from evosaga.orchestrator.whatsapp.health.connection_state import (
    STEADY,
    WELL,
    Judgement,
    Record,
)
from evosaga.orchestrator.whatsapp.reconciliation.snapshot import Row
from evosaga.sagas.whatsapp import integration_events
from evosaga.sagas.whatsapp.arbitration import business_key
from evosaga.sagas.whatsapp.integration_events import Notice
from evosaga.sagas.whatsapp.steps.integration_row import AS_STATUS

ALERT: Final = "integration.alert"
_Judged: TypeAlias = tuple[Row, Judgement]
_PAGE: Final = 500
_FORGOTTEN: Final = 20_000
"""Records that a round looks through for those of integrations that are gone."""


async def read(pool: Pool, ids: Sequence[UUID]) -> dict[UUID, Record]:
    """What is remembered of these integrations."""
    return {
        row["integration_id"]: Record(**{name: row[name] for name in _REMEMBERED})
        for row in await pool.fetch(_READ, ids)
    }


async def write(
    pool: Pool, judged: Sequence[_Judged], posts_alerts: bool = False
) -> tuple[int, list[_Judged]]:
    """Remember, let rows follow and write the notices of it.

    Returned are how many rows were changed, and of what an alert was written: another process that
    checks at the same time may have written it already. ``posts_alerts``: EVOSAGA_ALERT_URL is set,
    so a message to it is written as well.

    A row is left alone that was changed since it was read, that is being deleted, or that a saga
    is at work for: what was seen may not be so any more.
    """
    changed, alerted = 0, list[_Judged]()
    ordered = sorted(judged, key=lambda one: one[0].id)
    for page in (ordered[at : at + _PAGE] for at in range(0, len(ordered), _PAGE)):
        async with pool.acquire() as connection, connection.transaction():
            rows, notices = await _follow(connection, page)
            alarming = await _not_alerted(connection, page)
            told = [_notice(row, judged, ALERT) for row, judged in alarming] + notices
            if told:
                await integration_events.record(connection, told)
            await _remember(connection, page)
            if alarming:
                await alerts.record(connection, alarming, posts_alerts)
        changed, alerted = changed + rows, alerted + alarming
    return changed, alerted


async def _not_alerted(connection: Connection, page: Sequence[_Judged]) -> list[_Judged]:
    """Those of which to write an alert, since no other process has since they were read."""
    alarming = [(row, judged) for row, judged in page if judged.alert]
    if not alarming:
        return []
    # All of the page, in the order in which it is remembered: a part of it could deadlock.
    known = await connection.fetch(_LOCK, [row.id for row, _ in page])
    over = {(one["integration_id"], one["since"]) for one in known if one["alerted_at"]}
    return [(row, judged) for row, judged in alarming if (row.id, judged.record.since) not in over]


async def _follow(connection: Connection, page: Sequence[_Judged]) -> tuple[int, list[Notice]]:
    """How many rows were changed, and what is to be told of it."""
    wanted = {row.id: (row, judged) for row, judged in page if judged.status is not None}
    told: list[Notice] = []
    if wanted:
        values = list(wanted.values())
        written = await connection.fetch(
            _FOLLOW,
            list(wanted),
            [judged.status for _, judged in values],
            [judged.number for _, judged in values],
            [row.updated_at for row, _ in values],
            [row.instance_name for row, _ in values],
            [business_key(row.organization_id) for row, _ in values],
        )
        for id_ in sorted(row["id"] for row in written):
            row, judged = wanted[id_]
            if judged.status != row.status:
                told.append(_notice(row, judged, f"integration.{judged.status}"))
    else:
        written = []
    return len(written), told


def _notice(row: Row, judged: Judgement, type_: str) -> Notice:
    record = judged.record
    data: dict[str, Any] = {"status": judged.status or row.status, "state": record.state}
    if type_ == ALERT:
        data["since"] = record.since.isoformat()
    else:
        data["before"] = row.status
    if record.reason is not None:
        data["reason"] = record.reason
    return Notice(row.id, row.organization_id, row.instance_name, type_, data)


async def _remember(connection: Connection, page: Sequence[_Judged]) -> None:
    records = [judged.record for _, judged in page]
    await connection.execute(
        _REMEMBER,
        [row.id for row, _ in page],
        [record.state for record in records],
        [record.since for record in records],
        [record.looks for record in records],
        [record.reason for record in records],
        [record.connected_at for record in records],
        [record.reconnects for record in records],
        [record.next_reconnect_at for record in records],
        [record.alerted_at for record in records],
        [record.checked_at for record in records],
    )


async def claim_try(pool: Pool, integration_id: UUID, before: Record, after: Record) -> bool:
    """Note a try before Evolution is asked; False: another process has asked since ``before``."""
    claimed = await pool.fetchval(
        _CLAIM, integration_id, before.reconnects, after.reconnects, after.next_reconnect_at
    )
    return bool(claimed)


async def give_back_try(pool: Pool, integration_id: UUID, before: Record, after: Record) -> None:
    """Nothing was sent, so the try that was noted does not count."""
    await pool.execute(
        _CLAIM, integration_id, after.reconnects, before.reconnects, before.next_reconnect_at
    )


async def still_free(pool: Pool, row: Row) -> bool:
    """Whether the row is as it was, is not being deleted, and no saga is at work for it."""
    free = await pool.fetchval(_FREE, row.id, row.instance_name, business_key(row.organization_id))
    return bool(free)


async def forget(pool: Pool) -> None:
    """Drop what is remembered of integrations that are gone: a part of many, in turn by chance."""
    begin = uuid4()
    looked: int = await pool.fetchval(_FORGET, begin, _FORGOTTEN)
    if looked < _FORGOTTEN:
        await pool.fetchval(_FORGET, UUID(int=0), _FORGOTTEN)


_READ: Final = """
SELECT integration_id, state, since, looks, reason, connected_at, reconnects, next_reconnect_at,
       alerted_at, checked_at
FROM evosaga.connections WHERE integration_id = ANY($1)
"""
_REMEMBERED: Final = tuple(field.name for field in fields(Record))
_FOLLOW: Final = f"""
UPDATE healthcare.integrations AS row SET status = {AS_STATUS.format("new.status")},
    updated_at = now(), whatsapp_number = coalesce(new.number, row.whatsapp_number)
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[])
    AS new (id, status, number, updated_at, instance_name, business_key)
WHERE row.id = new.id AND row.updated_at IS NOT DISTINCT FROM new.updated_at
  AND coalesce(row.status::text, 'pending') <> 'deleting'
  AND NOT EXISTS (SELECT FROM evosaga.open_sagas AS saga
                  WHERE saga.instance_name = new.instance_name
                     OR saga.business_key = new.business_key)
RETURNING row.id
"""  # noqa: S608  # constants only
# What another process has done since this one read stays done, or it would be done twice: an alert
# of the same disconnection, and a try that it has claimed, unless the connection is steady again.
_IS_STEADY: Final = f"excluded.state IN {tuple(sorted(WELL))} AND excluded.looks >= {STEADY}"
_REMEMBER: Final = f"""
INSERT INTO evosaga.connections AS known (integration_id, state, since, looks, reason, connected_at,
    reconnects, next_reconnect_at, alerted_at, checked_at)
SELECT id, state, since, looks, reason, connected_at, reconnects, next_reconnect_at, alerted_at,
    checked_at
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::int[], $5::int[], $6::timestamptz[],
            $7::int[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[])
    AS new (id, state, since, looks, reason, connected_at, reconnects, next_reconnect_at,
            alerted_at, checked_at)
ORDER BY id
ON CONFLICT (integration_id) DO UPDATE SET state = excluded.state, since = excluded.since,
    looks = excluded.looks, reason = excluded.reason, connected_at = excluded.connected_at,
    reconnects = CASE WHEN {_IS_STEADY} THEN excluded.reconnects
                      ELSE greatest(known.reconnects, excluded.reconnects) END,
    next_reconnect_at = CASE WHEN known.reconnects > excluded.reconnects AND NOT ({_IS_STEADY})
                             THEN known.next_reconnect_at ELSE excluded.next_reconnect_at END,
    alerted_at = coalesce(
        excluded.alerted_at, CASE WHEN known.since = excluded.since THEN known.alerted_at END),
    checked_at = excluded.checked_at
"""  # noqa: S608  # constants only
_LOCK: Final = """
SELECT integration_id, since, alerted_at FROM evosaga.connections
WHERE integration_id = ANY($1) ORDER BY integration_id FOR UPDATE
"""
_CLAIM: Final = """
UPDATE evosaga.connections SET reconnects = $3, next_reconnect_at = $4
WHERE integration_id = $1 AND reconnects = $2 RETURNING true
"""
_FREE: Final = """
SELECT EXISTS (SELECT FROM healthcare.integrations
               WHERE id = $1 AND enabled AND coalesce(status::text, 'pending') <> 'deleting'
                 AND config ->> 'instance_name' = $2)
   AND NOT EXISTS (SELECT FROM evosaga.open_sagas
                   WHERE instance_name = $2 OR business_key = $3)
"""
_FORGET: Final = """
WITH looked AS (
    SELECT integration_id FROM evosaga.connections WHERE integration_id >= $1
    ORDER BY integration_id LIMIT $2
), gone AS (
    DELETE FROM evosaga.connections AS known USING looked
    WHERE known.integration_id = looked.integration_id AND NOT EXISTS (
        SELECT FROM healthcare.integrations AS row WHERE row.id = known.integration_id)
)
SELECT count(*) FROM looked
"""
