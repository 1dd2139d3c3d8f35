"""Spans of FastAPI, httpx, asyncpg and FastStream, made by the instrumentation of each library.

An attempt's requests and queries are children of its span: the ids of that one come from its event
(``evosaga.events.trace_context``), so they are known before it is told. A request or a message
begins a trace, or goes on with its caller's; upkeep that no saga and no request caused is not sent.
"""

import os
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
from opentelemetry import context, propagate
from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from evosaga.events import trace_context
from evosaga.events.trace_context import SpanPlace
from evosaga.orchestrator.maintenance.tracing.exporting import CleanExporter

if TYPE_CHECKING:
    from fastapi import FastAPI

_NOT_TRACED: Final = "/healthz$,/readyz$,/metrics$,/static/"
_LAST_WORDS: Final = 2000
"""Milliseconds that a process which ends gives a collector to take its last spans."""
_BEGIN: Final = frozenset({SpanKind.SERVER, SpanKind.CONSUMER})


@dataclass(slots=True)
class Instrumentation:
    """That of this process. ``libraries``: of which."""

    libraries: AbstractSet[str]
    provider: TracerProvider
    _end: list[Callable[[], None]] = field(default_factory=list)

    def begin(self) -> None:
        """From here on the libraries record."""
        if not os.environ.get("OTEL_PROPAGATORS"):
            # The default hands on a caller's baggage as well, to servers of others.
            before = propagate.get_global_textmap()
            propagate.set_global_textmap(TraceContextTextMapPropagator())
            self._end.append(lambda: propagate.set_global_textmap(before))
        trace_context.entered = _enter
        self._end.append(_leave)
        if "asyncpg" in self.libraries:
            from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

            make: Callable[..., AsyncPGInstrumentor] = AsyncPGInstrumentor  # which has no types
            asyncpg = make(capture_parameters=False)
            asyncpg.instrument(tracer_provider=self.provider)
            self._end.append(asyncpg.uninstrument)
        if "httpx" in self.libraries:
            from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

            clients = HTTPXClientInstrumentor()
            clients.instrument(tracer_provider=self.provider)
            self._end.append(clients.uninstrument)

    def end(self) -> None:
        """The libraries are as before, and what they recorded is sent or given up. Blocks."""
        for one in reversed(self._end):
            one()
        self.provider.shutdown()

    def of_app(self, app: "FastAPI") -> None:
        """Let each request be a span, and the parent of the saga that it begins."""
        if "fastapi" in self.libraries:
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

            FastAPIInstrumentor.instrument_app(
                app,
                tracer_provider=self.provider,
                excluded_urls=_NOT_TRACED,
                exclude_spans=["receive", "send"],
                server_request_hook=_go_on_from,
            )

    def middlewares(self) -> list[Any]:
        """FastStream's own, of each batch that it reads."""
        if "faststream" not in self.libraries:
            return []
        from faststream.redis.opentelemetry import RedisTelemetryMiddleware

        return [RedisTelemetryMiddleware(tracer_provider=self.provider)]

    def of_transport(
        self, transport: httpx.AsyncBaseTransport, base: str
    ) -> httpx.AsyncBaseTransport:
        """The transport to an Evolution server, whose spans say which call it was.

        httpx's instrumentation knows httpx's own transports only.
        """
        if "httpx" not in self.libraries:
            return transport
        from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport

        above = urlsplit(base).path.rstrip("/")

        async def name(span: otel.Span, request: Any) -> None:
            path = request.url.path.removeprefix(above)
            call = "/".join(path.split("/")[:3])  # what follows is an instance's name
            span.update_name(f"{request.method.decode()} {call}")
            span.set_attribute("url.template", call)

        traced: httpx.AsyncBaseTransport = AsyncOpenTelemetryTransport(
            transport, tracer_provider=self.provider, request_hook=name
        )
        return traced


def begun(libraries: AbstractSet[str]) -> Instrumentation:
    """The instrumentation of these libraries, recording from here on."""
    instrumentation = Instrumentation(libraries, _provider())
    instrumentation.begin()
    return instrumentation


def _provider() -> TracerProvider:
    resource = Resource.create({"service.name": "evosaga"})
    usual = TracerProvider(resource=resource, shutdown_on_exit=False).sampler
    provider = TracerProvider(
        sampler=ParentBased(_Begun(usual)), resource=resource, shutdown_on_exit=False
    )
    provider.add_span_processor(_Batches(CleanExporter(OTLPSpanExporter())))
    return provider


class _Batches(BatchSpanProcessor):
    def shutdown(self) -> None:
        """Send the last ones; a collector that is away must not keep a process from ending."""
        self._batch_processor.shutdown(timeout_millis=_LAST_WORDS)


class _Begun(Sampler):
    """Of what has no parent, requests and messages are recorded, as OTEL_TRACES_SAMPLER says."""

    def __init__(self, usual: Sampler) -> None:
        self._usual = usual

    def should_sample(
        self,
        parent_context: context.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: otel.TraceState | None = None,
    ) -> SamplingResult:
        """Drop upkeep: a worker asks Postgres several times a second, whatever happens."""
        if kind not in _BEGIN:
            return SamplingResult(Decision.DROP)
        given = parent_context, trace_id, name, kind, attributes, links, trace_state
        return self._usual.should_sample(*given)

    def get_description(self) -> str:
        """For people."""
        return f"requests and messages: {self._usual.get_description()}"


def _enter(place: SpanPlace) -> None:
    """What this task does from here on belongs to that attempt."""
    flags = TraceFlags(TraceFlags.SAMPLED)
    of = SpanContext(int(place.trace_id, 16), int(place.span_id, 16), False, flags)
    context.attach(otel.set_span_in_context(NonRecordingSpan(of), context.Context()))


def _leave() -> None:
    trace_context.entered = None


def _go_on_from(span: otel.Span, scope: dict[str, Any]) -> None:
    """Let the saga be a child of the request, and not of the request's caller."""
    if not span.is_recording():
        return
    at = span.get_span_context()
    own = str(SpanPlace(f"{at.trace_id:032x}", f"{at.span_id:016x}")).encode()
    others = [pair for pair in scope["headers"] if pair[0] != b"traceparent"]
    scope["headers"] = [*others, (b"traceparent", own)]
