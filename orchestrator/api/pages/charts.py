"""Charts of the sagas that began in the last hour, day or week: rate, failures, durations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from evosaga.events.database import Queryable
from evosaga.orchestrator.api.pages.rendering import WORDS, clock
from evosaga.orchestrator.api.pages.time_axis import duration

HEIGHT: Final = 80
_MOST: Final = 20_000
"""The most sagas counted, the newest: a busier time is cut short."""
_TICKS: Final = 5
_ORDER: Final = ("completed", "rejected", "compensated", "failed", "compensating", "running")
"""From the bottom of a column to its top: open sagas are on top."""
_NICE: Final = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Period:
    """So much time in columns of so much each. ``said``: "the last …"; ``unit``: of a column."""

    said: str
    column: timedelta
    count: int
    unit: str


PERIODS: Final[Mapping[str, Period]] = {
    "hour": Period("hour", timedelta(minutes=1), 60, "minute"),
    "day": Period("day", timedelta(minutes=30), 48, "half hour"),
    "week": Period("week", timedelta(hours=3), 56, "three hours"),
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sagas that began in the time of one column, by status; seconds of those completed."""

    at: datetime
    counts: Mapping[str, int]
    p50: float | None = None
    p95: float | None = None

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a column, in pixels from the top."""

    status: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``x`` and ``width`` are in percent."""

    x: float
    width: float
    said: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Line:
    """A line in units of a hundredth of the width and of the height: SVG path data."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Charts:
    """Both charts of one period, with the ends of their axes."""

    period: str
    buckets: Sequence[Bucket]
    columns: Sequence[Column]
    ticks: Sequence[datetime]
    tallest: int
    lines: Sequence[Line]
    slowest: float
    """Seconds at the top of the axis of durations."""
    cut: bool

    @property
    def total(self) -> int:
        return sum(bucket.total for bucket in self.buckets)

    @property
    def unit(self) -> str:
        return PERIODS[self.period].unit

    def begun(self, status: str) -> int:
        """Of the sagas that began in this time, how many have that status now."""
        return sum(bucket.counts.get(status, 0) for bucket in self.buckets)

    @property
    def failures(self) -> int:
        return self.begun("failed") + self.begun("compensated")

    @property
    def per_minute(self) -> float:
        """Sagas begun a minute, over the last five whole columns of the hour."""
        if self.period != "hour":
            return 0.0
        return sum(bucket.total for bucket in self.buckets[-6:-1]) / 5

    @property
    def durations(self) -> str:
        """What the second chart shows, in words."""
        p50 = [bucket.p50 for bucket in self.buckets if bucket.p50 is not None]
        p95 = [bucket.p95 for bucket in self.buckets if bucket.p95 is not None]
        if not p50 or not p95:
            return "no saga was completed"
        return f"p50 up to {duration(max(p50))}, p95 up to {duration(max(p95))}"


async def charts(pool: Queryable, period: str, organization_id: UUID | None) -> Charts:
    """Read and drawn; an unknown period is the hour."""
    period = period if period in PERIODS else "hour"
    chosen = PERIODS[period]
    rows = await pool.fetch(
        _BUCKETS, organization_id, _MOST, chosen.column, chosen.column * (chosen.count - 1)
    )
    now: datetime = await pool.fetchval("SELECT date_bin($1, now(), 'epoch')", chosen.column)
    return drawn(period, now, rows)


def drawn(period: str, last: datetime, rows: Sequence[asyncpg.Record]) -> Charts:
    """The charts of these rows; ``last`` is when the newest column begins. Pure."""
    chosen = PERIODS[period]
    buckets = _buckets(chosen, last, rows)
    top = nice(max([1, *(bucket.total for bucket in buckets)]))
    slowest = nice(max([0.1, *(bucket.p95 or 0.0 for bucket in buckets)]))
    step = 100 / chosen.count
    spread = chosen.count - 1
    return Charts(
        period=period,
        buckets=buckets,
        columns=[_column(n * step, step, bucket, top) for n, bucket in enumerate(buckets)],
        ticks=[buckets[round(n * spread / (_TICKS - 1))].at for n in range(_TICKS)],
        tallest=int(top),
        lines=[
            Line("p95", _path([bucket.p95 for bucket in buckets], slowest)),
            Line("p50", _path([bucket.p50 for bucket in buckets], slowest)),
        ],
        slowest=slowest,
        cut=sum(bucket.total for bucket in buckets) >= _MOST,
    )


def _buckets(chosen: Period, last: datetime, rows: Sequence[asyncpg.Record]) -> list[Bucket]:
    """As many as the period has, empty where no saga began."""
    counts: dict[datetime, dict[str, int]] = {}
    spent: dict[datetime, tuple[float | None, float | None]] = {}
    for row in rows:
        counts.setdefault(row["at"], {})[row["status"]] = row["count"]
        if row["status"] == "completed":
            spent[row["at"]] = (row["p50"], row["p95"])
    moments = [last - chosen.column * back for back in range(chosen.count - 1, -1, -1)]
    return [Bucket(at, counts.get(at, {}), *spent.get(at, (None, None))) for at in moments]


def nice(value: float) -> float:
    """The end of an axis: 1, 2 or 5 times a power of ten, not below the value."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    while power > value:
        power /= 10
    return round(next(power * factor for factor in _NICE if power * factor >= value), 6)


def _column(x: float, width: float, bucket: Bucket, tallest: float) -> Column:
    parts, top = [], float(HEIGHT + 3)
    for status in _ORDER:
        count = bucket.counts.get(status, 0)
        if count:
            height = max(1.5, round(HEIGHT * count / tallest, 1))
            top = round(top - height, 1)
            parts.append(Part(status, top, height))
    told = ", ".join(f"{bucket.counts[s]} {WORDS[s]}" for s in _ORDER if s in bucket.counts)
    said = f"{clock(bucket.at)[:-3]}: {told or 'none'}"
    return Column(round(x, 3), round(width * 0.78, 3), said, parts)


def _path(values: Sequence[float | None], top: float) -> str:
    """Lines between neighbours that have a value; one that stands alone is a short dash."""
    step = 100 / len(values)
    drawn, before = [], False
    for number, value in enumerate(values):
        if value is not None:
            x, y = round((number + 0.1) * step, 2), round(100 - 100 * min(value, top) / top, 2)
            drawn.append(f"{'L' if before else 'M'}{x} {y}H{round(x + step * 0.78, 2)}")
        before = value is not None
    return "".join(drawn)


_BUCKETS: Final = """
SELECT date_bin($3::interval, created_at, 'epoch') AS at, status, count(*) AS count,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY spent) AS p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY spent) AS p95
FROM (SELECT created_at, status,
             extract(epoch FROM updated_at - created_at)::double precision AS spent
      FROM evosaga.sagas
      WHERE created_at >= date_bin($3::interval, now(), 'epoch') - $4::interval
        AND ($1::uuid IS NULL OR organization_id = $1)
      ORDER BY created_at DESC LIMIT $2) AS recent
GROUP BY 1, 2
"""
