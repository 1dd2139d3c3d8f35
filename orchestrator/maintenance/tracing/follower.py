"""Follows ``evosaga:events`` and sends the spans that end with them to a collector.

One leader; how far it is, is in ``evosaga.receivers``. What is sent twice has the same ids.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events import background, streams
from evosaga.events.connection_errors import reason
from evosaga.events.database import TRANSIENT, Pool
from evosaga.events.leader_election import Candidacy
from evosaga.events.streams import FIELD, as_text
from evosaga.events.trace_context import SpanPlace
from evosaga.orchestrator.config.receivers import TRACES
from evosaga.orchestrator.maintenance.tracing.spans import Span, StoredEvent, spans_of

_logger = structlog.get_logger("evosaga.tracing")
_LEASE: Final = 12.0
_BATCH: Final = 300
_LATER: Final = 10.0
_REFUSALS: Final = 3
"""So often the same spans are refused before the one that is at fault is looked for."""
_SCOPE: Final = InstrumentationScope("evosaga")


@dataclass(slots=True)
class TraceFollower:
    """One candidate. The exporter reads its address from the variables of OpenTelemetry."""

    pool: Pool
    redis: Redis
    me: str
    make_exporter: Callable[[], OTLPSpanExporter] = OTLPSpanExporter
    tick: float = 1.0
    _refused: int = field(default=0, init=False)

    async def run(self) -> None:
        """Follow for ever; cancel it to stop. A collector that is away is waited for."""
        candidacy = Candidacy(self.pool, "traces", self.me, lease=_LEASE)
        exporter, resource = self.make_exporter(), Resource.create({"service.name": "evosaga"})

        async def turn() -> float:
            try:
                if await candidacy.held() and await self.take(exporter, resource):
                    return 0.0
            except (RedisError, *TRANSIENT) as trouble:
                _logger.warning("traces_retrying", reason=reason(trouble))
            except _Refused:
                _logger.warning("traces_retrying", reason="the collector took nothing")
                return _LATER
            except Exception as stumble:  # no reason to stop a worker
                _logger.error("traces_failed", error=type(stumble).__name__)
                return _LATER
            return self.tick

        await background.repeat(turn)

    async def take(self, exporter: OTLPSpanExporter, resource: Resource) -> bool:
        """Send the spans of the next events; whether there may be more."""
        last = await self.pool.fetchval(_LAST, TRACES)
        if last is None:
            newest: Any = await self.redis.xrevrange(streams.EVENTS, count=1)
            await self.pool.execute(_BEGIN, TRACES, as_text(newest[0][0]) if newest else "0-0")
            return False
        entries: Any = await self.redis.xrange(streams.EVENTS, min=f"({last}", count=_BATCH)
        if not entries:
            return False
        fresh = _places(entries)
        rows = await self.pool.fetch(_HISTORY, list(fresh))
        histories: dict[UUID, list[StoredEvent]] = {}
        for row in rows:
            event = StoredEvent(
                row["saga_id"], row["sequence"], row["type"], json.loads(row["data"]), row["at"]
            )
            histories.setdefault(event.saga_id, []).append(event)
        found = [span for id_, all_ in histories.items() for span in spans_of(all_, fresh[id_])]
        if found:
            told = [_readable(span, resource) for span in found]
            await self._send(exporter, told)
        await self.pool.execute(_MOVE, TRACES, last, as_text(entries[-1][0]))
        return len(entries) == _BATCH

    async def _send(self, exporter: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> None:
        """Send them. Raises ``_Refused``, to try again later.

        What a collector that is there refuses again and again must not keep later traces from it:
        then the spans are sent in halves, and the one that is refused alone is left out.
        """
        if await _accepted(exporter, spans):
            self._refused = 0
            return
        self._refused += 1
        if self._refused < _REFUSALS:
            raise _Refused
        await self._send_halves(exporter, spans)
        self._refused = 0

    async def _send_halves(self, exporter: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> None:
        """Leave out what is refused. Raises ``_Refused`` when the collector is away instead."""
        if not await _accepted(exporter, []):
            raise _Refused
        if len(spans) == 1:
            saga_id = (spans[0].attributes or {}).get("evosaga.saga_id")
            _logger.error("span_dropped", span=spans[0].name, saga_id=saga_id)
            return
        middle = len(spans) // 2
        for half in (spans[:middle], spans[middle:]):
            if not await _accepted(exporter, half):
                await self._send_halves(exporter, half)


async def _accepted(exporter: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> bool:
    # The exporter blocks, with retries of its own.
    return await asyncio.to_thread(exporter.export, spans) is SpanExportResult.SUCCESS


class _Refused(Exception):
    """The collector did not take the spans."""


def _places(entries: Sequence[Any]) -> dict[UUID, set[int]]:
    """The sequences of events by saga; what is no event of a saga is left out."""
    found: dict[UUID, set[int]] = {}
    for _, fields in entries:
        try:
            saga, _, sequence = json.loads(fields[FIELD])["id"].partition(":")
            found.setdefault(UUID(saga), set()).add(int(sequence))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
            continue
    return found


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=_context(span.place),
        parent=_context(span.parent) if span.parent else None,
        resource=resource,
        attributes=span.attributes,
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
        start_time=_nanoseconds(span.began),
        end_time=_nanoseconds(span.ended),
        instrumentation_scope=_SCOPE,
    )


def _context(place: SpanPlace) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), False, flags)


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


_LAST: Final = "SELECT last_event FROM evosaga.receivers WHERE name = $1"
_BEGIN: Final = """
INSERT INTO evosaga.receivers (name, last_event) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""
_MOVE: Final = """
UPDATE evosaga.receivers SET last_event = $3, updated_at = now()
WHERE name = $1 AND last_event = $2
"""
_HISTORY: Final = """
SELECT saga_id, sequence, type, data, recorded_at AS at FROM evosaga.saga_events
WHERE saga_id = ANY($1) ORDER BY saga_id, sequence
"""
