"""W3C Trace Context: reading ``traceparent``, and the ids that a saga's own trace has.

https://www.w3.org/TR/trace-context/ and the distributed tracing extension of CloudEvents.
"""

import hashlib
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

FACT: Final = "traceparent"
"""Its name among the facts of a saga's beginning, which stay in Postgres."""
_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

incoming: ContextVar[str | None] = ContextVar("evosaga_traceparent", default=None)
"""The header of the HTTP request that is being answered, where it is one."""


current: ContextVar["SpanPlace | None"] = ContextVar("evosaga_span", default=None)
"""The saga or attempt that is at work, where its trace was begun by another program."""


entered: "Callable[[SpanPlace], None] | None" = None
"""Called in the task of an attempt, with its span; set while libraries are instrumented."""


@dataclass(frozen=True, slots=True)
class SpanPlace:
    """A span in a trace; ids in lower-case hexadecimal."""

    trace_id: str
    span_id: str

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


def valid(value: Any) -> str | None:
    """The value, if it is a ``traceparent``; garbage is left out, as the standard wants it."""
    return value if isinstance(value, str) and read(value) is not None else None


def read(value: str) -> SpanPlace | None:
    """The span that it names; None for what is none."""
    found = _FORM.fullmatch(value) if len(value) <= 200 else None
    if found is None:
        return None
    version, trace_id, span_id, _, more = found.groups()
    if version == "ff" or (version == "00" and more):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return SpanPlace(trace_id, span_id)


def of_saga(saga_id: UUID, traceparent: str | None) -> SpanPlace:
    """The span of a whole saga: in the trace it was given, or in one of its own."""
    parent = read(traceparent) if traceparent else None
    trace_id = parent.trace_id if parent else saga_id.hex
    return SpanPlace(trace_id, span_id(str(saga_id)))


def of_attempt(saga_id: UUID, sequence: int, traceparent: str | None) -> SpanPlace:
    """The span of an attempt. ``sequence``: of the event that claimed it."""
    return SpanPlace(of_saga(saga_id, traceparent).trace_id, span_id(f"{saga_id}:{sequence}"))


def here() -> SpanPlace | None:
    """Where the caller is in a trace: an attempt, a saga, or the caller of an HTTP request."""
    at = current.get()
    if at is None and (given := incoming.get()) is not None:
        return read(given)
    return at


def span_id(of: str) -> str:
    """The same for ever, so that a span told twice is one."""
    return hashlib.sha256(of.encode()).digest()[:8].hex()
