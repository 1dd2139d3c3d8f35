"""Who is told outside, by HTTP: receivers of alerts and of events, from the settings."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    ConfigDict,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings

Format = Literal["json", "slack", "pagerduty"]

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
SIMPLE: Final = "alerts"
"""The receiver of EVOSAGA_ALERTS_URL."""
PHONES: Final = "alert-url"
"""The receiver of EVOSAGA_ALERT_URL, of which phones alone are told."""
TRACES: Final = "otel"
"""Under which the traces keep how far they are."""
PAGERDUTY: Final = "https://events.pagerduty.com/v2/enqueue"
_PREFIX: Final = "whsec_"
_URL: Final = "url must start with https:// or http:// and have a host"
_SIGNS: Final = "secret must be whsec_ and base64 of 24 to 64 bytes, as Standard Webhooks has it"
_PATTERN: Final = re.compile(r"\*|[a-z_.]+\*?")


def check_url(value: SecretStr) -> SecretStr:
    """A URL that can be posted to. Raises ``ValueError``, which doesn't quote it."""
    try:
        parts = urlsplit(value.get_secret_value())
        _ = parts.port  # which raises when it is none
    except ValueError:
        raise ValueError(_URL) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(_URL)
    return value


def check_secret(value: SecretStr) -> SecretStr:
    """Secrets, comma separated, the one for what is new first. Raises ``ValueError``."""
    secret_bytes(value)
    return value


def secret_bytes(value: SecretStr) -> list[bytes]:
    """The keys to sign with."""
    found = []
    for part in value.get_secret_value().split(","):
        try:
            key = base64.b64decode(part.strip().removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(_SIGNS) from None
        if not 24 <= len(key) <= 64:
            raise ValueError(_SIGNS)
        found.append(key)
    return found


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError("events are types such as saga.failed, saga.* or *")
    return patterns


@dataclass(frozen=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class Receiver:
    """``alerts``: whether it is told of them. ``events``: types, where ``*`` ends a pattern.

    ``secret`` signs; without it the key is derived from EVOSAGA_SECRET_KEY. ``routing_key`` is
    PagerDuty's.
    """

    url: Annotated[SecretStr, AfterValidator(check_url)]
    format: Format = "json"
    secret: Annotated[SecretStr, AfterValidator(check_secret)] | None = None
    routing_key: SecretStr | None = None
    alerts: bool = True
    events: Annotated[tuple[str, ...], AfterValidator(_patterns)] = ()

    def __post_init__(self) -> None:
        if self.format == "pagerduty" and self.routing_key is None:
            raise ValueError("format pagerduty needs routing_key")
        if self.events and self.format != "json":
            raise ValueError(f"events are sent as json only, not as {self.format}")

    def wants(self, type_: str) -> bool:
        """Whether an event of that type is sent to it."""
        return any(
            type_.startswith(one[:-1]) if one.endswith("*") else type_ == one for one in self.events
        )


def _free(name: str) -> str:
    if name in (SIMPLE, PHONES, TRACES):
        raise ValueError(f"{name} is a name of our own; choose another name")
    return name


_RECEIVERS: Final = TypeAdapter(
    dict[
        Annotated[str, StringConstraints(pattern=rf"\A{NAME.pattern}\z"), AfterValidator(_free)],
        Receiver,
    ]
)


def read_receivers(value: Any) -> Mapping[str, Receiver]:
    """Receivers by name, from JSON or from what JSON says.

    Raises ``ValueError`` with a sentence that names receiver and field and quotes no value.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (json.JSONDecodeError, RecursionError):
            raise ValueError("is no JSON") from None
    try:
        return _RECEIVERS.validate_python(value)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    own = str(first["ctx"]["error"]) if first["type"] == "value_error" else ""
    match first["loc"]:
        case ():
            return 'must be a JSON object: {"name": {"url": "https://…", "events": ["saga.*"]}}'
        case (_, "[key]"):
            return own or "a receiver's name is a-z, 0-9 and -, at most 31 characters"
        case (name, field, *_) if field in _FIELDS:
            return f"{name}: {own or f'{field}: ' + first['msg'].lower()}"
        case (name, *_):
            return f"{name}: {own or 'has ' + ', '.join(_FIELDS) + ', and nothing else'}"
    raise error


_FIELDS: Final = ("url", "format", "secret", "routing_key", "alerts", "events")


def runbook_of(settings: "Settings", code: str | None) -> str | None:
    """Where the runbook has the paragraph of a code; None: there is no code."""
    return f"{settings.runbook_url}#{code}" if code else None


def receivers_of(settings: "Settings") -> dict[str, Receiver]:
    """All of them by name. Raises ``ValueError`` for a combination that can't be."""
    found: dict[str, Receiver] = {}
    url, format_ = settings.alerts_url, settings.alerts_format
    if url is None and format_ == "pagerduty":
        url = SecretStr(PAGERDUTY)
    if url is not None:
        found[SIMPLE] = Receiver(url, format_, settings.alerts_secret, settings.alerts_routing_key)
    if settings.alert_url is not None:
        found[PHONES] = Receiver(settings.alert_url, secret=settings.alerts_secret, alerts=False)
    return found | dict(settings.receivers)
