"""Prometheus metrics of the stores and of one process.

Everything here costs the same however many sagas there are: what is read has an index that ends at
what is open, and what is long over is counted as it happens or estimated.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import asyncpg
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import streams
from evosaga.events.clock import LIVING
from evosaga.events.database import TRANSIENT, Pool, Queryable
from evosaga.events.relay import UNRELAYED
from evosaga.events.statuses import ACTIVE_STATUSES
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.limits import Limiter
from evosaga.orchestrator.engine.measures import Buckets

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
FEW: Final = 200_000
"""Sagas up to which all of them are counted; above that what is over is estimated."""
STATUSES: Final = ("running", "compensating", "completed", "compensated", "failed", "rejected")


def text(metrics: Iterable[Metric]) -> bytes:
    """The text format, for scraping."""
    registry = CollectorRegistry()
    registry.register(_Found(metrics))
    return generate_latest(registry)


class _Found:
    """A collector of values that were read before, since collectors cannot await."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def of_postgres(pool: Pool) -> list[Metric]:
    """What there is to do, and who does it. A server that is down is a metric, not an error."""
    try:
        row = await pool.fetchrow(_WORK)
        firing = await pool.fetch(_ALERTS)
        waiting = await pool.fetch(_DELIVERIES)
    except (asyncpg.PostgresError, *TRANSIENT):
        return [up("postgres", 0)]
    assert row is not None
    return [
        up("postgres", 1),
        gauge("evosaga_workers", "Workers that show a sign of life", row["workers"]),
        gauge("evosaga_oldest_active_seconds", "Age of the oldest saga under way", row["oldest"]),
        gauge("evosaga_due_seconds", "How long the saga that is due longest waits", row["due"]),
        gauge("evosaga_relay_lag_events", "Committed events not yet on the stream", row["lag"]),
        gauge(
            "evosaga_relay_lag_seconds",
            "Age of the oldest committed event that is not yet on the stream",
            row["lag_seconds"],
        ),
        gauge(
            "evosaga_log_went_back",
            "Whether Postgres lacks events that were published, so that an operator must decide",
            row["went_back"],
        ),
        labelled(
            "evosaga_alerts_firing",
            "Alerts that are told and not over",
            ("code", "severity"),
            {(row["code"], row["severity"]): row["number"] for row in firing},
        ),
        labelled(
            "evosaga_deliveries_waiting",
            "Messages that a receiver has not taken yet",
            ("receiver",),
            {(row["receiver"],): row["number"] for row in waiting},
        ),
    ]


async def of_redis(redis: Redis) -> list[Metric]:
    """The stream of commands."""
    try:
        backlog = await streams.backlog(redis)
        oldest = await streams.oldest_waiting(redis) if backlog is not None else None
    except (RedisError, OSError, TimeoutError):
        return [up("redis", 0)]
    if backlog is None:
        return [up("redis", 1)]
    told: dict[str, tuple[str, Any]] = {
        "lag": ("Commands that no worker has read yet", backlog.lag),
        "pending": ("Commands being accepted", backlog.pending),
        "dead": ("Dead letters", backlog.dead),
        "oldest_seconds": ("Age of the oldest command that is not accepted yet", oldest or 0.0),
    }
    return [
        up("redis", 1),
        *(
            gauge(f"evosaga_commands_{name}", said, value)
            for name, (said, value) in told.items()
            if value is not None
        ),
    ]


def of_pool(pool: Pool) -> list[Metric]:
    """This process's connections to Postgres."""
    size, idle = pool.get_size(), pool.get_idle_size()
    return [
        labelled(
            "evosaga_pool_connections",
            "Connections of this process to Postgres",
            ("state",),
            {("idle",): idle, ("used",): size - idle},
        ),
        gauge("evosaga_pool_connections_max", "As many as it may have", pool.get_max_size()),
    ]


def of_worker(engine: Engine, lease: Lease | None, healthy: bool) -> list[Metric]:
    """What this process's worker is at, and how long its sagas and their attempts took."""
    found: list[Metric] = [
        gauge("evosaga_consumers_healthy", "Both subscribers run", int(healthy)),
        gauge("evosaga_driving", "Sagas this process drives", len(engine.driving)),
        gauge(
            "evosaga_organizations_at_share",
            "Organizations of which this process drives as many sagas as it may",
            sum(number >= engine.share for number in engine.largest.values()),
        ),
        histogram(
            "evosaga_step_attempt_seconds",
            "From the claim of an attempt to the commit of its outcome",
            ("saga", "step", "direction", "outcome"),
            engine.measures.attempts,
        ),
        histogram(
            "evosaga_saga_seconds",
            "From the start of a saga to its end, or until it was parked",
            ("saga", "status"),
            engine.measures.sagas,
        ),
    ]
    if lease is not None:
        found += [
            gauge("evosaga_lease_seconds", "How long a lease this worker asks for", lease.ttl),
            gauge("evosaga_lease_late_seconds", "How late its heartbeats are", lease.pace.late),
            gauge("evosaga_lease_held", "Whether this worker may act right now", int(lease.held)),
        ]
    blocked = engine.watchdog.blocked if engine.watchdog is not None else {}
    kept = CounterMetricFamily(
        "evosaga_loop_blocked_seconds",
        "For how long steps kept the event loop to themselves",
        labels=("saga", "step"),
    )
    for names, seconds in blocked.items():
        kept.add_metric(names, float(seconds))
    return [*found, *of_limits(engine.limiter), kept]


def of_limits(limiter: Limiter | None) -> list[Metric]:
    """The limited resources that this worker has asked for a place at."""
    seen = limiter.seen if limiter is not None else {}
    held = {(name,): float(one.held) for name, one in seen.items()}
    waiting = {(name,): float(one.waiting) for name, one in seen.items()}
    asked = CounterMetricFamily(
        "evosaga_limit_asked",
        "Times that this worker asked for a place",
        labels=("limit", "answer"),
    )
    if limiter is not None:
        for answer, times in (("granted", limiter.granted), ("wait", limiter.refused)):
            for name, count in times.items():
                asked.add_metric((name, answer), float(count))
    return [
        labelled("evosaga_limit_held", "Places taken, of all workers", ("limit",), held),
        labelled("evosaga_limit_waiting", "Attempts that wait for a place", ("limit",), waiting),
        asked,
    ]


async def counted(pool: Queryable) -> dict[str, int]:
    """Sagas by status; of more than ``FEW``, those that are over by estimate."""
    row = await pool.fetchrow(_SIZE)
    if row is None or row["size"] < FEW:
        return {row["status"]: row["number"] for row in await pool.fetch(_EXACT)}
    found: dict[str, int] = {}
    for status in STATUSES:
        if status != "completed":
            number = int(await pool.fetchval(_SOME, status, FEW))
            found[status] = number if number < FEW else await _estimated(pool, status, row["size"])
    return found | {"completed": max(0, int(row["size"]) - sum(found.values()))}


async def _estimated(pool: Queryable, status: str, size: int) -> int:
    """At least ``FEW``: the share that Postgres's statistics say it has."""
    shares = {row["value"]: row["share"] for row in await pool.fetch(SHARES, "evosaga", "sagas")}
    return max(FEW, int(size * shares.get(status, 0.0)))


def up(dependency: str, value: int) -> Metric:
    """Whether a server answers."""
    return gauge(f"evosaga_{dependency}_up", f"Whether {dependency} answers", value)


def gauge(name: str, said: str, value: Any) -> Metric:
    """One number."""
    return GaugeMetricFamily(name, said, value=float(value))


def labelled(name: str, said: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    """Numbers by labels."""
    family = GaugeMetricFamily(name, said, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def histogram(
    name: str, said: str, labels: tuple[str, ...], values: Mapping[Any, Buckets]
) -> Metric:
    """Histograms by labels."""
    family = HistogramMetricFamily(name, said, labels=labels)
    for key, buckets in values.items():
        so_far, cumulated = 0, []
        for bound, count in zip([*map(str, buckets.bounds), "+Inf"], buckets.counts, strict=True):
            so_far += count
            cumulated.append((bound, float(so_far)))
        family.add_metric(key, cumulated, buckets.total)
    return family


_WORK: Final = f"""
SELECT (SELECT count(*) FROM evosaga.workers WHERE {LIVING}) AS workers,
       coalesce(extract(epoch FROM now() - least(
           (SELECT min(created_at) FROM evosaga.sagas WHERE status = 'running'),
           (SELECT min(created_at) FROM evosaga.sagas WHERE status = 'compensating'))), 0)
           AS oldest,
       greatest(0, coalesce(extract(epoch FROM now() - least(
           (SELECT min(due_at) FROM evosaga.sagas WHERE due_at IS NOT NULL),
           (SELECT min(next_at) FROM evosaga.sagas
            WHERE {ACTIVE_STATUSES} AND owner IS NOT NULL))), 0)) AS due,
       {UNRELAYED} AS lag,
       coalesce(extract(epoch FROM now() - (SELECT recorded_at FROM evosaga.saga_events
           WHERE position > coalesce((SELECT position FROM evosaga.relay
                                      WHERE stream = '{streams.EVENTS}'), 0)
           ORDER BY position LIMIT 1)), 0) AS lag_seconds,
       (SELECT count(*) FROM evosaga.relay WHERE stream = '{streams.EVENTS}'
        AND to_jsonb(relay) ->> 'went_back_at' IS NOT NULL) AS went_back
"""  # noqa: S608  # constants only
_ALERTS: Final = """
SELECT code, severity, count(*) AS number FROM evosaga.alerts
WHERE resolved_at IS NULL AND fires_at <= now() GROUP BY code, severity
"""
_DELIVERIES: Final = """
SELECT receiver, count(*) AS number FROM evosaga.deliveries
WHERE delivered_at IS NULL AND gave_up_at IS NULL GROUP BY receiver
"""
_SIZE: Final = (
    "SELECT reltuples::bigint AS size FROM pg_class WHERE oid = 'evosaga.sagas'::regclass"
)
_EXACT: Final = "SELECT status, count(*) AS number FROM evosaga.sagas GROUP BY status"
_SOME: Final = """
SELECT count(*) FROM (SELECT FROM evosaga.sagas WHERE status = $1 LIMIT $2) AS some_of_them
"""
SHARES: Final = """
SELECT unnest(most_common_vals::text::text[]) AS value, unnest(most_common_freqs)::float8 AS share
FROM pg_stats WHERE schemaname = $1 AND tablename = $2 AND attname = 'status'
"""
"""The share of a table's rows that each status has, as of the last ANALYZE."""
