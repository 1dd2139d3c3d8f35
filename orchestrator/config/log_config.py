"""Log lines: for people on a terminal, as JSON for machines, always on stderr.

Our own loggers and those of the libraries go one way, and whatever a line is made of, no secret
of the settings and no password in a URL leaves with it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

import structlog

from evosaga.events import trace_context, urls
from evosaga.orchestrator.config.receivers import receivers_of

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings

_CHATTY: Final = (
    "aiohttp",
    "alembic",
    "asyncio",
    "evosaga.faststream",
    "faststream",
    "httpcore",
    "httpx",
    "redis",
    "sqlalchemy",
    "uvicorn",
)
"""Loggers of others, of which only warnings matter."""
_PASSWORD: Final = re.compile(r"""(?<=://)([^\s/@:"']*):(?!\d{1,5}[/?#])[^\s"']+@""")
"""Up to the last ``@``, since a password that nobody has percent-encoded may hold some."""
_PARAMETER: Final = re.compile(r"""(?<=[?&])((?:password|token)=)[^&\s"']+""")
_NO_SECRETS: Final = frozenset({"evosaga", "password", "postgres", "postgresql", "redis"})
"""Passwords of a first attempt. Taking them out would only make lines unreadable."""


def configure(settings: Settings) -> None:
    """Set up logging for this process, once the settings are known."""
    as_json = (settings.log_format or ("console" if sys.stderr.isatty() else "json")) == "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        trace_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
                Redaction(_secrets(settings)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def trace_ids(_logger: Any, _method: str, line: Any) -> Any:
    """Adds ``trace_id`` and ``span_id`` where another program has begun the trace."""
    if (at := trace_context.here()) is not None:
        line.setdefault("trace_id", at.trace_id)
        line.setdefault("span_id", at.span_id)
    return line


class Redaction:
    """The last processor: takes secrets out of the finished line, wherever they came from."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = sorted({s for s in secrets if len(s) >= 8}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, _logger: Any, _method: str, line: Any) -> str:
        text = _PASSWORD.sub(r"\1:[redacted]@", str(line))
        text = _PARAMETER.sub(r"\1[redacted]", text)
        return self._known.sub("[redacted]", text) if self._known else text


def redaction() -> Redaction:
    """For text that is written before logging is set up, or instead of it: a traceback."""
    from evosaga.orchestrator.config.settings import SettingsError, load_settings

    try:
        return Redaction(_secrets(load_settings()))
    except (SettingsError, OSError, ValueError):
        return Redaction([])


def _secrets(settings: Settings) -> list[str]:
    """Every value that must not be told."""
    keys = settings.api_keys.get_secret_value().split(",") if settings.api_keys else []
    # name:key[:organization]: only the key is secret.
    found = [parts[1].strip() for key in keys if len(parts := key.split(":")) > 1]
    if settings.evolution_api_key:
        found.append(settings.evolution_api_key.get_secret_value())
    found += [server.api_key.get_secret_value() for server in settings.evolution_servers.values()]
    for receiver in receivers_of(settings).values():
        secrets = (receiver.url, receiver.secret, receiver.routing_key)
        found += [secret.get_secret_value() for secret in secrets if secret]
        if receiver.secret:
            found += [part.strip() for part in receiver.secret.get_secret_value().split(",")]
    if settings.secret_key:
        found += [part.strip() for part in settings.secret_key.get_secret_value().split(",")]
    for url in (settings.database_url, settings.redis_url, settings.evolution_url):
        found += _passwords(url or "")
    return found


def _passwords(url: str) -> list[str]:
    """The password in a URL as it is written and as it is meant, and its parts: who reads the URL
    wrongly says where it stopped.
    """
    parts = urls.split(url)
    named = dict(parse_qsl(parts.query))
    given = [parts.password or "", *(named.get(n, "") for n in ("password", "sentinel_password"))]
    whole = {form for one in given for form in (one, unquote(one))}
    pieces = {piece for one in whole for piece in re.split(r"[@:/?#\[\]%]", one)}
    plain = _NO_SECRETS | {parts.username, parts.hostname, parts.path.strip("/")}
    return sorted((whole | pieces) - plain)
