"""Messages to receivers in Postgres: made in one transaction with what they are about."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg

from evosaga.events.database import Connection, Pool, Queryable
from evosaga.orchestrator.maintenance.alerts.view import AlertView

GIVE_UP: Final = 86400.0
"""Seconds for which a message is tried."""
GONE: Final = "it is no longer configured"
_DEPLOYED: Final = 3600.0
"""Seconds for which messages wait for a receiver that the settings do not have."""
_AGAIN: Final = 300.0
"""Seconds after which it is news that an alert has more causes than were told."""
_ALERTS_KEPT: Final = "30 days"
_EVENTS_KEPT: Final = "1 hour"
"""For which what was delivered stays, so that an event told twice by Redis is sent once."""


async def announce(pool: Pool, receivers: Sequence[str], runbook: str) -> int:
    """Write the messages of alerts that fire, have grown or are over; how many alerts those are."""
    async with pool.acquire() as connection, connection.transaction():
        fires = await connection.fetch(_FIRES, _AGAIN)
        over = await connection.fetch(_OVER)
        for state, rows in (("firing", fires), ("resolved", over)):
            for row in rows:
                await _write(connection, receivers, state, row, runbook)
        if fires:
            await connection.execute(_ANNOUNCED, [row["id"] for row in fires])
        if over:
            await connection.execute(_OVER_ANNOUNCED, [row["id"] for row in over])
    return len(fires) + len(over)


async def _write(
    connection: Connection, receivers: Sequence[str], state: str, row: asyncpg.Record, runbook: str
) -> None:
    alert = AlertView.of(row).told(runbook) | {"status": state}
    type_, begun = f"alert.{state}", int(row["opened_at"].timestamp())
    now = datetime.now(UTC).isoformat(timespec="seconds")
    body = json.dumps({"type": type_, "timestamp": now, "data": alert}, default=str)
    # The count is part of it: that there are more of them is another message.
    times = f"_{row['count']}" if state == "firing" else ""
    message_id = f"alert_{row['id']}_{begun}_{state}{times}"
    await connection.execute(_QUEUE, list(receivers), message_id, type_, body, row["id"])


async def queue(
    connection: Queryable, receiver: str, message_id: str, type_: str, body: Any
) -> None:
    """Write one message, in the caller's transaction."""
    text = json.dumps(body, default=str)
    await connection.execute(_QUEUE, [receiver], message_id, type_, text, None)


async def due(pool: Queryable, receiver: str, limit: int) -> list[asyncpg.Record]:
    """The messages to be sent now, oldest first; of an alert only the oldest that is left."""
    return await pool.fetch(_DUE, receiver, limit)


async def delivered(pool: Queryable, id_: int) -> None:
    """It was taken."""
    await pool.execute(_DELIVERED, id_)


async def failed(pool: Queryable, row: asyncpg.Record, error: str, wait: float | None) -> bool:
    """It was not taken: tried again later, or given up. Whether it was given up."""
    age, tries = row["age"], row["tries"] + 1
    # Each few seconds at first, and later four times as long as it has waited already.
    pause = min(2.0 * 2.0 ** min(tries, 20), max(30.0, age / 4), 900.0)
    return bool(await pool.fetchval(_FAILED, row["id"], error, max(pause, wait or 0.0), GIVE_UP))


async def abandon(pool: Queryable, known: Sequence[str]) -> dict[str, int]:
    """Give up what waits for receivers that the settings do not have any more; how many, by name.

    Not at once: while a deploy goes on, processes with other settings run side by side.
    """
    rows = await pool.fetch(_ABANDON, list(known), _DEPLOYED)
    return {row["receiver"]: row["number"] for row in rows}


async def tidy(pool: Queryable) -> None:
    """Forget what is long done."""
    await pool.execute(_TIDY_DELIVERIES)
    await pool.execute(_TIDY_ALERTS)


# Each part has a partial index, and few rows are ever in one.
_FIRES: Final = """
SELECT * FROM evosaga.alerts WHERE id IN (
    SELECT id FROM evosaga.alerts
    WHERE announced_at IS NULL AND fires_at <= coalesce(resolved_at, now())
      AND opened_at > now() - interval '1 day'
    UNION ALL
    SELECT id FROM evosaga.alerts
    WHERE resolved_at IS NULL AND count > announced_count
      AND announced_at < now() - make_interval(secs => $1))
ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
"""
_OVER: Final = """
SELECT * FROM evosaga.alerts
WHERE resolved_at IS NOT NULL AND resolution_announced_at IS NULL AND announced_at IS NOT NULL
ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
"""
_ANNOUNCED: Final = """
UPDATE evosaga.alerts SET announced_at = now(), announced_count = count WHERE id = ANY($1)
"""
_OVER_ANNOUNCED: Final = """
UPDATE evosaga.alerts SET resolution_announced_at = now() WHERE id = ANY($1)
"""
_QUEUE: Final = """
INSERT INTO evosaga.deliveries (receiver, message_id, type, body, alert_id)
SELECT receiver, $2, $3, $4, $5 FROM unnest($1::text[]) AS receiver
ON CONFLICT DO NOTHING
"""
_DUE: Final = """
SELECT id, message_id, type, body, tries, extract(epoch FROM now() - created_at)::float8 AS age
FROM evosaga.deliveries AS mine
WHERE receiver = $1 AND delivered_at IS NULL AND gave_up_at IS NULL AND next_at <= now()
  AND (alert_id IS NULL OR NOT EXISTS (
      SELECT FROM evosaga.deliveries AS before
      WHERE before.receiver = $1 AND before.alert_id = mine.alert_id AND before.id < mine.id
        AND before.delivered_at IS NULL AND before.gave_up_at IS NULL))
ORDER BY next_at, id LIMIT $2
"""
_DELIVERED: Final = """
WITH taken AS (
    UPDATE evosaga.deliveries SET delivered_at = now(), tries = tries + 1, error = NULL
    WHERE id = $1 RETURNING receiver
)
INSERT INTO evosaga.receivers AS known (name, last_event, delivered_at)
SELECT receiver, '', now() FROM taken
ON CONFLICT (name) DO UPDATE SET delivered_at = now()
"""
_FAILED: Final = """
UPDATE evosaga.deliveries SET tries = tries + 1, error = $2,
    next_at = now() + make_interval(secs => $3),
    gave_up_at = CASE WHEN created_at < now() - make_interval(secs => $4) THEN now() END
WHERE id = $1 AND delivered_at IS NULL RETURNING gave_up_at IS NOT NULL
"""
_ABANDON: Final = f"""
WITH given_up AS (
    UPDATE evosaga.deliveries SET gave_up_at = now(), error = '{GONE}'
    WHERE delivered_at IS NULL AND gave_up_at IS NULL AND receiver <> ALL($1)
      AND created_at < now() - make_interval(secs => $2)
    RETURNING receiver)
SELECT receiver, count(*) AS number FROM given_up GROUP BY receiver ORDER BY receiver
"""  # noqa: S608  # constants only
_TIDY_DELIVERIES: Final = f"""
DELETE FROM evosaga.deliveries
WHERE delivered_at < now() - CASE WHEN alert_id IS NULL THEN interval '{_EVENTS_KEPT}'
                                  ELSE interval '{_ALERTS_KEPT}' END
   OR gave_up_at < now() - interval '{_ALERTS_KEPT}'
"""  # noqa: S608  # constants only
_TIDY_ALERTS: Final = f"""
DELETE FROM evosaga.alerts WHERE resolved_at < now() - interval '{_ALERTS_KEPT}'
"""  # noqa: S608
