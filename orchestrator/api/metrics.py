"""Prometheus metrics.

Labels hold no ids and no names of people or organizations. Evolution servers are labelled with the
name that the operator gave them.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import asyncpg
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from evosaga.events.database import TRANSIENT, Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.engine.resources import ServicesBySaga
from evosaga.orchestrator.queries import metrics
from evosaga.orchestrator.whatsapp.metrics import of_servers

CONTENT_TYPE: Final = metrics.CONTENT_TYPE
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FRESH: Final = 5.0
"""Seconds for which the counts by status are cached."""


@dataclass(slots=True)
class HttpMetrics:
    """Requests that this process has answered. ``route`` is the template, not the path."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    seconds: Histogram = field(init=False)
    webhooks: Counter = field(init=False)
    counted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    counted_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.seconds = Histogram(
            "evosaga_http_request_seconds",
            "How long answers took, until their last byte",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0),
        )
        self.webhooks = Counter(
            "evosaga_webhooks",
            "What became of webhooks: taken, or the code with which they were refused",
            ("became",),
            registry=self.registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. A method may be any word, so only known methods become labels."""
        method = method if method in _METHODS else "other"
        self.seconds.labels(method, route, status).observe(seconds)


async def exposition(parts: AppContext, http: HttpMetrics) -> bytes:
    """All metrics as text. A server that is down is a metric, not an error."""
    found = [
        *await metrics.of_postgres(parts.pool),
        *await _counts(parts, http),
        *await metrics.of_redis(parts.redis),
        *metrics.of_pool(parts.pool),
        *_of_domains(parts),
        *_worker(parts),
    ]
    return metrics.text(found) + generate_latest(http.registry)


async def _counts(parts: AppContext, http: HttpMetrics) -> list[Metric]:
    if time.monotonic() - http.counted_at > _FRESH:
        try:
            sagas = await metrics.counted(parts.pool)
            rows = await _integrations(parts.pool) if parts.whatsapp else {}
        except (asyncpg.PostgresError, *TRANSIENT):
            return []
        http.counted = {("sagas", status): number for status, number in sagas.items()} | {
            ("integrations", status): number for status, number in rows.items()
        }
        http.counted_at = time.monotonic()
    return [
        _by_status(what, statuses, http.counted)
        for what, statuses in _STATUSES.items()
        if parts.whatsapp or what != "integrations"
    ]


async def _integrations(pool: Pool) -> dict[str, int]:
    """By status; of very many by the estimate of Postgres's statistics."""
    size = await pool.fetchval(_SIZE)
    if size is None or size < metrics.FEW:
        return {row["status"]: row["number"] for row in await pool.fetch(_INTEGRATIONS)}
    shares = await pool.fetch(metrics.SHARES, "healthcare", "integrations")
    return {row["value"]: int(size * row["share"]) for row in shares}


def _of_domains(parts: AppContext) -> list[Metric]:
    if parts.domains is None or not isinstance(parts.gate.services, ServicesBySaga):
        return of_servers(parts.services)
    return parts.domains.of_open(parts.gate.services, lambda one: one.metrics)


def _worker(parts: AppContext) -> list[Metric]:
    if parts.reader is None or parts.engine is None:
        return []
    return metrics.of_worker(parts.engine, parts.lease, parts.reader.healthy)


def _by_status(
    what: str, statuses: Iterable[str], counted: Mapping[tuple[str, str], int]
) -> Metric:
    values = {(status,): float(counted.get((what, status), 0)) for status in statuses}
    return metrics.labelled(
        f"evosaga_{what}", f"{what.capitalize()} by status", ("status",), values
    )


_STATUSES: Final = {
    "sagas": metrics.STATUSES,
    "integrations": ("pending", "connected", "disconnected", "deleting"),
}
_SIZE: Final = """
SELECT reltuples::bigint FROM pg_class WHERE oid = 'healthcare.integrations'::regclass
"""
_INTEGRATIONS: Final = """
SELECT coalesce(status::text, 'pending') AS status, count(*) AS number
FROM healthcare.integrations WHERE type = 'whatsapp' AND provider = 'evolution' GROUP BY 1
"""
