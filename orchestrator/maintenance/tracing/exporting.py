"""What leaves the process in a span of a library: chosen attributes, never what could be a secret.

Instrumentations record whole URLs, headers where told to, texts of exceptions and statements. A URL
of a webhook has its token, one of Evolution may have a phone number, and an exception quotes
values, so only what is listed here is sent.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status
from opentelemetry.util.types import AttributeValue

_SENT: Final = frozenset(
    {
        *("http.method", "http.request.method", "http.route", "http.scheme", "url.scheme"),
        *("http.status_code", "http.response.status_code", "http.flavor", "url.template"),
        *("net.peer.name", "net.peer.port", "server.address", "server.port"),
        *("net.transport", "network.transport", "network.protocol.version", "error.type"),
        *("db.system", "db.system.name", "db.name", "db.namespace"),
        *("db.statement", "db.query.text"),
        *("messaging.system", "messaging.operation", "messaging.destination_publish.name"),
        *("messaging.destination.name", "messaging.batch.message_count"),
    }
)
_STATEMENTS: Final = ("db.statement", "db.query.text")
_VALUES: Final = re.compile(
    r"""
    "(?:[^"]|"")*"                             # a name; its quotes begin no value
    | (?P<value> \b[eE]'(?:[^'\\]|''|\\.)*(?:'|$)  # a backslash escapes in these alone
      | '(?:[^']|'')*(?:'|$)
      | \$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|$)
      | (?<![\w$.])\d[\w.]*                       # a number may be a phone's; $1 is none
      | --[^\n]* | /\*.*?(?:\*/|$) )             # what a comment quotes would hide the next value
    """,
    re.DOTALL | re.VERBOSE,
)
"""Values and comments of a statement; one that does not end goes on to the statement's end."""
_LONGEST: Final = 2000
"""Characters of a statement."""


class CleanExporter(SpanExporter):
    """Hands on what ``clean`` leaves."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them, once."""
        return self._inner.export([clean(span) for span in spans])

    def shutdown(self) -> None:
        """End a try that is under way."""
        self._inner.shutdown()


def clean(span: ReadableSpan) -> ReadableSpan:
    """The span without texts of exceptions, and with no attributes but those that are listed."""
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes=_attributes(span.attributes or {}),
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _attributes(found: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    kept = {name: value for name, value in found.items() if name in _SENT}
    for name in _STATEMENTS:
        if name in kept:  # parameters stay apart; a saga of one's own may have written values in
            kept[name] = _VALUES.sub(_hidden, str(kept[name])).strip()[:_LONGEST]
    return kept


def _hidden(found: re.Match[str]) -> str:
    return "?" if found["value"] else found[0]
