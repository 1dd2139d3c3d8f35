"""Alerts and receivers as people and programs read them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import asyncpg

from evosaga.events.database import Queryable
from evosaga.orchestrator.config.receivers import Receiver

State = Literal["pending", "firing", "resolved"]
MOST: Final = 200


@dataclass(frozen=True, slots=True)
class AlertView:
    """One alert. ``pending``: true, and not yet for long enough to be told."""

    id: int
    key: str
    code: str
    reason: str | None
    severity: str
    state: State
    message: str
    cure: str
    count: int
    opened_at: datetime
    announced_at: datetime | None
    resolved_at: datetime | None
    data: Mapping[str, Any]

    @staticmethod
    def of(row: asyncpg.Record) -> "AlertView":
        """A row of ``evosaga.alerts``."""
        state: State = "firing" if row["announced_at"] else "pending"
        if row["resolved_at"] is not None:
            state = "resolved"
        same = ("id", "key", "code", "reason", "severity", "message", "cure", "count")
        times = ("opened_at", "announced_at", "resolved_at")
        known = {name: row[name] for name in (*same, *times)}
        return AlertView(**known, state=state, data=json.loads(row["data"]))

    def told(self, runbook: str) -> dict[str, Any]:
        """As JSON has it, in messages, on the command line and over HTTP."""
        return {
            "id": self.id,
            "key": self.key,
            "code": self.code,
            "reason": self.reason,
            "severity": self.severity,
            "status": self.state,
            "message": self.message,
            "cure": self.cure,
            "count": self.count,
            "opened_at": _iso(self.opened_at),
            "announced_at": _iso(self.announced_at),
            "resolved_at": _iso(self.resolved_at),
            "runbook": link(runbook, self.code),
            "details": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class ReceiverView:
    """How one receiver is doing; nothing of it is secret."""

    name: str
    format: str
    alerts: bool
    events: Sequence[str]
    waiting: int = 0
    given_up: int = 0
    failing_since: datetime | None = None
    delivered_at: datetime | None = None
    error: str | None = None

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "format": self.format,
            "alerts": self.alerts,
            "events": list(self.events),
            "waiting": self.waiting,
            "given_up": self.given_up,
            "failing_since": _iso(self.failing_since),
            "delivered_at": _iso(self.delivered_at),
            "error": self.error,
        }


def link(runbook: str, code: str) -> str:
    """Where the runbook has the paragraph of a code."""
    return f"{runbook}#{code}"


async def listing(pool: Queryable, *, resolved: bool, limit: int = MOST) -> list[AlertView]:
    """The open alerts, the gravest and newest first; with ``resolved`` those that are over, too."""
    rows = await pool.fetch(_LIST if resolved else _LIST_OPEN, limit)
    return [AlertView.of(row) for row in rows]


async def firing(pool: Queryable) -> dict[str, int]:
    """How many alerts are told and not over, by code."""
    rows = await pool.fetch(_FIRING)
    return {row["code"]: row["number"] for row in rows}


async def receivers(pool: Queryable, known: Mapping[str, Receiver]) -> list[ReceiverView]:
    """The receivers of these settings, and how each is doing."""
    rows = {row["receiver"]: row for row in await pool.fetch(_RECEIVERS, list(known))}
    names = ("waiting", "given_up", "failing_since", "delivered_at", "error")
    return [
        ReceiverView(
            name,
            one.format,
            one.alerts,
            one.events,
            **({field: rows[name][field] for field in names} if name in rows else {}),
        )
        for name, one in known.items()
    ]


async def removed(pool: Queryable, known: Mapping[str, Receiver]) -> list[ReceiverView]:
    """Receivers that these settings do not have, and for which messages wait or were given up."""
    rows = await pool.fetch(_REMOVED, list(known))
    names = ("waiting", "given_up")
    return [
        ReceiverView(row["receiver"], "", False, (), **{name: row[name] for name in names})
        for row in rows
    ]


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


_FIRING: Final = """
SELECT code, count(*) AS number FROM evosaga.alerts
WHERE announced_at IS NOT NULL AND resolved_at IS NULL GROUP BY code
"""
_ORDER: Final = "ORDER BY resolved_at IS NOT NULL, severity = 'critical' DESC, id DESC LIMIT $1"
_LIST: Final = f"SELECT * FROM evosaga.alerts {_ORDER}"  # noqa: S608  # constants only
_LIST_OPEN: Final = f"SELECT * FROM evosaga.alerts WHERE resolved_at IS NULL {_ORDER}"  # noqa: S608
_REMOVED: Final = """
SELECT receiver, count(*) FILTER (WHERE gave_up_at IS NULL) AS waiting,
       count(*) FILTER (WHERE gave_up_at > now() - interval '7 days') AS given_up
FROM evosaga.deliveries
WHERE delivered_at IS NULL AND receiver <> ALL($1)
  AND (gave_up_at IS NULL OR gave_up_at > now() - interval '7 days')
GROUP BY receiver ORDER BY receiver
"""
# The error of what waits, or else of what was given up last.
_RECEIVERS: Final = """
SELECT name AS receiver, waiting, given_up, failing_since, error,
       (SELECT delivered_at FROM evosaga.receivers AS known WHERE known.name = asked.name)
           AS delivered_at
FROM unnest($1::text[]) AS asked (name)
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE gave_up_at IS NULL) AS waiting,
           count(*) FILTER (WHERE gave_up_at > now() - interval '7 days') AS given_up,
           min(created_at) FILTER (WHERE gave_up_at IS NULL AND tries > 0) AS failing_since,
           (array_agg(error ORDER BY gave_up_at IS NULL DESC, id DESC)
               FILTER (WHERE error IS NOT NULL))[1] AS error
    FROM evosaga.deliveries WHERE receiver = asked.name AND delivered_at IS NULL
) AS found
"""
