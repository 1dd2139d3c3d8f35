"""Alerts: what is wrong now, and was told or will be, one open row a group of causes.

A row is opened in the transaction of what causes it, or by the process that leads the alerts
(``evosaga.orchestrator.maintenance.alerts``), which also says how many there are, and ends it.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
import structlog

from evosaga.events.connection_errors import reason
from evosaga.events.database import Connection, Pool, Queryable

_logger = structlog.get_logger("evosaga.alerts")
Severity = Literal["warning", "critical"]

GATHERED: Final = 10.0
"""Seconds for which causes of the same kind gather before their alert is told."""
_LONGEST: Final = 45.0
"""Seconds after which it is told though there come more and more of them."""
_GONE: Final = 10.0
"""Seconds without it after which an alert is over."""
_SILENT: Final = 60.0
"""The same for what a process reports by itself; it does so each few seconds."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong. ``key`` is the same as long as it is the same trouble.

    ``code``: the alert's paragraph in the runbook; ``reason``: that of its cause, where it has one.
    ``after``: seconds for which it must last before it is told. ``members``: whether ``count``
    counts what belongs to it, so that a higher one is news.
    """

    key: str
    code: str
    message: str
    cure: str = ""
    severity: Severity = "warning"
    reason: str | None = None
    count: int = 1
    after: float = GATHERED
    data: Mapping[str, Any] = field(default_factory=dict)


FindConditions = Callable[[Pool], Awaitable[Sequence[Condition]]]
"""Looks at the stores for what is wrong now. Raises what Postgres raises."""


async def parked(connection: Connection, saga_ids: Sequence[UUID]) -> None:
    """Open the alerts of sagas that this transaction parks. How many there are is counted later.

    In a savepoint, and with a short wait for locks: other appends wait for this transaction, and an
    alert that can't be written must not keep a saga from being parked. The process that leads the
    alerts finds it within seconds.
    """
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '200ms'")
            await connection.execute(_PARKED, saga_ids, GATHERED)
    except asyncpg.PostgresError as trouble:
        _logger.warning("alerts_retrying", reason=reason(trouble))


async def open_now(connection: Queryable, conditions: Sequence[Condition]) -> None:
    """Open alerts in the caller's transaction; those that are open stay as they are."""
    if conditions:
        await connection.execute(f"{_INSERT} ON CONFLICT DO NOTHING", *_columns(conditions), False)


async def observe(
    pool: Queryable, conditions: Sequence[Condition], *, of_process: bool = False
) -> None:
    """Say that these are true now: opens them, or brings them up to date."""
    if conditions:
        await pool.execute(_OBSERVE, *_columns(conditions), of_process)


async def resolve(
    pool: Queryable, still: Sequence[Condition], codes: Sequence[str], *, settled: bool
) -> None:
    """End what is not true any more, and drop what was over before it was told.

    ``codes``: those that the caller has looked into; alerts of others are left as they are.
    ``settled``: the caller has led for long enough to have heard of what processes report, and
    ends what none of them has reported for a while, whatever its code.
    """
    keys = [one.key for one in still]
    await pool.execute(_RESOLVE, keys, list(codes), _GONE, _SILENT, settled)


def _columns(conditions: Sequence[Condition]) -> list[list[Any]]:
    """Column by column; by key, so that two transactions wait for each other in one order only."""
    ordered = sorted(conditions, key=lambda one: one.key)
    return [
        [one.key for one in ordered],
        [one.code for one in ordered],
        [one.reason for one in ordered],
        [one.severity for one in ordered],
        [one.message.replace("\0", "")[:1000] for one in ordered],
        [one.cure for one in ordered],
        [one.count for one in ordered],
        [json.dumps(one.data, default=str) for one in ordered],
        [one.after for one in ordered],
    ]


def parked_key(saga: str, code: str | None) -> str:
    """The group of a parked saga, as ``_PARKED`` spells it."""
    return f"parked/{saga}/{code or ''}"


_PARKED: Final = """
INSERT INTO evosaga.alerts (key, code, reason, severity, message, count, data, fires_at)
SELECT format('parked/%s/%s', saga, code), 'parked', code, 'warning',
       format('%s sagas %s are parked', count(*), saga), count(*),
       jsonb_build_object('saga', saga, 'saga_ids', (array_agg(saga_id))[:5]),
       now() + make_interval(secs => $2)
FROM evosaga.sagas WHERE saga_id = ANY($1) AND status = 'failed'
GROUP BY saga, code ORDER BY 1
ON CONFLICT DO NOTHING
"""
_INSERT: Final = """
INSERT INTO evosaga.alerts AS known
    (key, code, reason, severity, message, cure, count, data, fires_at, of_process)
SELECT key, code, reason, severity, message, cure, count, data::jsonb,
       now() + make_interval(secs => after), $10
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
            $8::text[], $9::float8[])
    AS new (key, code, reason, severity, message, cure, count, data, after)
ORDER BY key
"""
_OBSERVE: Final = f"""
{_INSERT}
ON CONFLICT (key) WHERE resolved_at IS NULL DO UPDATE SET
    seen_at = now(), reason = excluded.reason, severity = excluded.severity,
    message = excluded.message, cure = excluded.cure, count = excluded.count, data = excluded.data,
    fires_at = CASE WHEN known.announced_at IS NULL AND excluded.count > known.count
        THEN greatest(known.fires_at, least(known.opened_at + interval '{_LONGEST} s',
             now() + interval '{GATHERED} s'))
        ELSE known.fires_at END
"""  # constants only
_RESOLVE: Final = """
WITH over AS (
    SELECT id, fires_at > now() AS early FROM evosaga.alerts
    WHERE resolved_at IS NULL AND key <> ALL($1)
      AND seen_at < now()
          - make_interval(secs => CASE WHEN of_process THEN $4::float8 ELSE $3::float8 END)
      AND CASE WHEN of_process THEN $5 ELSE code = ANY($2) END
    ORDER BY key FOR UPDATE
), never_told AS (
    DELETE FROM evosaga.alerts USING over
    WHERE alerts.id = over.id AND over.early AND alerts.announced_at IS NULL
)
UPDATE evosaga.alerts SET resolved_at = now() FROM over
WHERE alerts.id = over.id AND (NOT over.early OR alerts.announced_at IS NOT NULL)
"""
