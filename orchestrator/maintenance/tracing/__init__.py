"""Traces for OpenTelemetry. Those of sagas are made from their events, so they survive any worker;
HTTP, queries and messages are added below them by the libraries' own instrumentation.

Nothing here is imported unless a collector is named in the environment as OpenTelemetry has it.
"""

import asyncio
import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from evosaga.orchestrator.config.settings import SettingsError

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from evosaga.orchestrator.maintenance.tracing.instrumentation import Instrumentation

VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OFF: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
"""OpenTelemetry's own variable: names, comma separated; ``*`` is all."""
_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
LIBRARIES: Final = {
    "asyncpg": "opentelemetry.instrumentation.asyncpg",
    "fastapi": "opentelemetry.instrumentation.fastapi",
    "faststream": "faststream.opentelemetry",  # a part of FastStream
    "httpx": "opentelemetry.instrumentation.httpx",
}
"""What can be instrumented, and the module that does it."""

running: "Instrumentation | None" = None
"""That of this process, while there is one."""
_users = 0


def configured(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a collector is named. Raises ``SettingsError`` when the extra is not installed."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or not any(environment.get(name) for name in VARIABLES):
        return False
    for module in (*_NEEDED, *(LIBRARIES[name] for name in instrumentations(environment))):
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            raise SettingsError(f"{VARIABLES[1]}: {module} is missing: pip install 'evosaga[otel]'")
    return True


def instrumentations(environment: Mapping[str, str] = os.environ) -> set[str]:
    """The libraries of which spans are sent. Raises ``SettingsError`` for a name that is none.

    Names of instrumentations that are none of ours are left alone: the variable is for all.
    """
    off = {one.strip().lower() for one in environment.get(_OFF, "").split(",")}
    return set() if "*" in off else set(LIBRARIES) - off


@contextlib.asynccontextmanager
async def instrumented() -> AsyncIterator[None]:
    """Inside, where a collector is named, it gets spans of HTTP, queries and messages as well.

    One instrumentation for the whole process, since libraries are instrumented as a whole.
    """
    global running, _users
    if not configured() or not instrumentations():
        yield
        return
    from evosaga.orchestrator.maintenance.tracing import instrumentation

    if running is None:
        running = instrumentation.begun(instrumentations())
    mine, _users = running, _users + 1
    try:
        yield
    finally:
        _users -= 1
        if not _users:
            running = None
            await asyncio.to_thread(mine.end)


def of_app(app: "FastAPI") -> None:
    """Let the requests to this application be spans, while instrumented."""
    if running is not None:
        running.of_app(app)


def middlewares() -> list[Any]:
    """What a FastStream broker needs for spans of its messages; empty unless instrumented."""
    return running.middlewares() if running is not None else []


def of_transport(transport: "httpx.AsyncBaseTransport", base: str) -> "httpx.AsyncBaseTransport":
    """The transport, with a span of each request while instrumented.

    ``base``: the URL under which an Evolution server has its routes.
    """
    return running.of_transport(transport, base) if running is not None else transport
