"""Prometheus metrics.

Labels hold no ids and no names of people or organizations. Evolution servers are labelled with the
name that the operator gave them.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.clock import LIVING
from evosaga.events.database import TRANSIENT
from evosaga.events.relay import UNRELAYED
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.api.dependencies import AppContext

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FRESH: Final = 5.0
"""Seconds for which the counts of finished sagas are cached, since they take a scan."""


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
    found = [*await _postgres(parts, http), *await _redis(parts), _breaker(parts), *_worker(parts)]
    registry = CollectorRegistry()
    registry.register(_Found(found))
    return generate_latest(registry) + generate_latest(http.registry)


class _Found:
    """A collector of values that were read before, since collectors cannot await."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def _postgres(parts: AppContext, http: HttpMetrics) -> list[Metric]:
    try:
        row = await parts.pool.fetchrow(_WORK)
        if time.monotonic() - http.counted_at > _FRESH:
            counts = await parts.pool.fetch(_SAGAS + (_INTEGRATIONS if parts.whatsapp else ""))
            http.counted = {(r["what"], r["status"]): r["number"] for r in counts}
            http.counted_at = time.monotonic()
    except (asyncpg.PostgresError, *TRANSIENT):
        return [_up("postgres", 0)]
    assert row is not None
    return [
        _up("postgres", 1),
        *(_by_status(what, statuses, http.counted) for what, statuses in _STATUSES.items()),
        _gauge("evosaga_workers", "Workers that show a sign of life", row["workers"]),
        _gauge("evosaga_oldest_active_seconds", "Age of the oldest saga under way", row["oldest"]),
        _gauge("evosaga_due_seconds", "How long the saga that is due longest waits", row["due"]),
        _gauge("evosaga_relay_lag_events", "Committed events not yet on the stream", row["lag"]),
    ]


async def _redis(parts: AppContext) -> list[Metric]:
    try:
        backlog = await streams.backlog(parts.redis)
    except (RedisError, OSError, TimeoutError):
        return [_up("redis", 0)]
    if backlog is None:
        return [_up("redis", 1)]
    told: dict[str, tuple[str, Any]] = {
        "lag": ("Commands that no worker has read yet", backlog.lag),
        "pending": ("Commands being accepted", backlog.pending),
        "dead": ("Dead letters", backlog.dead),
    }
    return [
        _up("redis", 1),
        *(
            _gauge(f"evosaga_commands_{name}", said, value)
            for name, (said, value) in told.items()
            if value is not None
        ),
    ]


def _breaker(parts: AppContext) -> Metric:
    """The circuit breaker's state for each Evolution server in this process."""
    said = "1 for the state of the circuit breaker to an Evolution server"
    family = GaugeMetricFamily("evosaga_evolution_breaker", said, labels=["server", "state"])
    for name, server in parts.services.servers.items():
        now = server.state.state
        for state in ("closed", "half-open", "open"):
            family.add_metric([name, state], int(state == now))
    return family


def _worker(parts: AppContext) -> list[Metric]:
    if parts.reader is None or parts.engine is None:
        return []
    return [
        _gauge("evosaga_consumers_healthy", "Both subscribers run", int(parts.reader.healthy)),
        _gauge("evosaga_driving", "Sagas this process drives", len(parts.engine.driving)),
    ]


def _by_status(
    what: str, statuses: Iterable[str], counted: Mapping[tuple[str, str], int]
) -> Metric:
    family = GaugeMetricFamily(
        f"evosaga_{what}", f"{what.capitalize()} by status", labels=["status"]
    )
    for status in statuses:
        family.add_metric([status], counted.get((what, status), 0))
    return family


def _up(dependency: str, value: int) -> Metric:
    return _gauge(f"evosaga_{dependency}_up", f"Whether {dependency} answers", value)


def _gauge(name: str, said: str, value: Any) -> Metric:
    return GaugeMetricFamily(name, said, value=float(value))


_STATUSES: Final = {
    "sagas": ("running", "compensating", "completed", "compensated", "failed", "rejected"),
    "integrations": ("pending", "connected", "disconnected", "deleting"),
}
_SAGAS: Final = """
SELECT 'sagas' AS what, status, count(*) AS number FROM evosaga.sagas GROUP BY status
"""
_INTEGRATIONS: Final = """
UNION ALL
SELECT 'integrations', coalesce(status::text, 'pending'), count(*) FROM healthcare.integrations
WHERE type = 'whatsapp' AND provider = 'evolution' GROUP BY 2
"""
_WORK: Final = f"""
SELECT (SELECT count(*) FROM evosaga.workers WHERE {LIVING}) AS workers,
       coalesce(extract(epoch FROM now() - (SELECT min(created_at) FROM evosaga.sagas
           WHERE {ACTIVE_STATUSES})), 0) AS oldest,
       greatest(0, coalesce(extract(epoch FROM now() - (SELECT min(next_at) FROM evosaga.sagas
           WHERE {ACTIVE_STATUSES})), 0)) AS due,
       {UNRELAYED} AS lag
"""  # noqa: S608  # constants only
