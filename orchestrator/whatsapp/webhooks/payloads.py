"""Parsing of webhook bodies into hints and messages.

A webhook has no id and no signature, comes twice, late or out of order, and its ``date_time`` is
local time under a false ``Z``. So it is a *hint*: it says that something is worth a look, and the
look decides. Nothing here touches anything; bytes in, frozen data out.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isinf
from typing import Any, Final, Literal, NoReturn, TypeAlias

from evosaga.sagas.whatsapp.evolution.models import QrCode, qr_code

LARGEST: Final = 8 * 1024 * 1024
"""Bytes. What comes in may be larger, and is made smaller before (``bodies``)."""
DEEPEST: Final = 32
_LONGEST_WORD: Final = 100

State: TypeAlias = Literal["connecting", "open", "refused", "close"]
_RANK: Final[dict[State | None, int]] = {
    None: -1,
    "connecting": 0,
    "open": 1,
    "refused": 2,
    "close": 3,
}
"""The order of events of one millisecond: what ends something wins over what begins it."""

OURS: Final = frozenset({"connection.update", "status.instance", "logout.instance"})
QR: Final = "qrcode.updated"
_IGNORED: Final = frozenset(
    {"application.startup", "instance.create", "instance.delete", "remove.instance"}
)
"""The global webhook sends these too; they say nothing that our log does not know."""


class BadWebhook(Exception):
    """The body can't be understood, and never will be. ``code`` is one of the API's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ConnectionHint:
    """An event about a connection. ``digest`` is the same when it comes again."""

    instance_name: str
    event: str
    at: datetime
    digest: str
    state: State | None = None
    reason: int | None = None
    code: QrCode | None = field(default=None, repr=False)
    """The QR code: for Redis alone, and only for a minute."""

    @property
    def is_about_qr(self) -> bool:
        """Whether it brings a QR code, or says that there will be none."""
        return self.event == QR


@dataclass(frozen=True, slots=True)
class Message:
    """Any other event: handed on to the routing workers as it is, less what they may not see."""

    instance_name: str
    event: str
    digest: str
    body: Mapping[str, Any] = field(repr=False)
    omitted: int = 0
    """How many of its texts were too long to be handed on."""
    large: bool = False
    """Whether writing it takes so long that the event loop would stall."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """An event that is not processed."""

    instance_name: str
    event: str


Parsed: TypeAlias = ConnectionHint | Message | Ignored


@dataclass(frozen=True, slots=True)
class MergedHint:
    """What the hints about one instance come to."""

    at: datetime | None = None
    state: State | None = None
    reason: int | None = None


def merge(heard: MergedHint, hint: ConnectionHint) -> MergedHint:
    """The newest by Evolution's own clock wins, however the hints came: in any order, any often."""
    if hint.state is None:
        return heard
    if heard.at is not None and _order(hint.at, hint.state, hint.reason) <= _order(
        heard.at, heard.state, heard.reason
    ):
        return heard
    return MergedHint(hint.at, hint.state, hint.reason)


def _order(at: datetime, state: State | None, reason: int | None) -> tuple[datetime, int, int]:
    return at, _RANK[state], reason or 0


def read(raw: bytes) -> dict[str, Any]:
    """The body as JSON. Raises ``BadWebhook``."""
    if len(raw) > LARGEST:
        raise BadWebhook("oversized", f"a webhook may have {LARGEST} bytes")
    try:
        body = json.loads(raw.decode(), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise BadWebhook("too_deep", f"nested more than {DEEPEST} levels") from None
    except UnicodeDecodeError:
        raise BadWebhook("not_utf8", "the body is not UTF-8") from None
    except ValueError:
        raise BadWebhook("malformed_json", "the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadWebhook("wrong_shape", "a webhook is a JSON object with event and instance")
    _refuse_depth(body)
    return body


def understand(body: Mapping[str, Any]) -> Parsed:
    """What it is about. Raises ``BadWebhook`` when it names no event or no instance."""
    event, name = _word(body.get("event")), _word(body.get("instance"))
    if event is None or name is None:
        raise BadWebhook("wrong_shape", "a webhook is a JSON object with event and instance")
    event = event.lower().replace("_", ".")
    data = body.get("data")
    if event in _IGNORED:
        return Ignored(name, event)
    digest = _digest([name, event, body.get("date_time"), data])
    if event in OURS or event == QR:
        return _hint(name, event, body, data if isinstance(data, dict) else {}, digest)
    return Message(name, event, digest, _public(body))


def others_named(told: Parsed, body: Mapping[str, Any]) -> set[str]:
    """Other instances that a hint claims to be about; a message may quote what it likes."""
    data = body.get("data")
    if not isinstance(told, ConnectionHint) or not isinstance(data, dict):
        return set()
    code = data.get("qrcode")
    claims = [data.get("instance"), code.get("instance") if isinstance(code, dict) else None]
    return {claim for claim in claims if isinstance(claim, str)} - {told.instance_name}


def _hint(
    name: str, event: str, body: Mapping[str, Any], data: Mapping[str, Any], digest: str
) -> ConnectionHint:
    at = _time(body.get("date_time"))
    if event == QR:
        code = qr_code(data.get("qrcode"))
        # Without a code it is the news that Evolution has shown as many as it wants to.
        return ConnectionHint(
            name, event, at, digest, None if code else "refused", _reason(data), code
        )
    if event != "connection.update":  # the session is over: logged out, unlinked or banned
        return ConnectionHint(name, event, at, digest, "close", _reason(data))
    said = data.get("state")
    state = next((known for known in _RANK if known is not None and known == said), None)
    return ConnectionHint(name, event, at, digest, state, _reason(data))


def _reason(data: Mapping[str, Any]) -> int | None:
    for name in ("statusReason", "disconnectionReasonCode", "statusCode"):
        value = data.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10_000:
            return value
    return None


def _time(said: Any) -> datetime:
    """Evolution's wall clock; the ``Z`` behind it is not to be believed, so it is dropped."""
    try:
        return datetime.fromisoformat(said).replace(tzinfo=None)
    except (TypeError, ValueError):
        return datetime.min


def _public(body: Mapping[str, Any]) -> dict[str, Any]:
    """An allow-list of the envelope: no key, no address of the server."""
    fields = ("event", "data", "date_time", "sender")
    return {field: _without_keys(body[field]) for field in fields if field in body}


def _without_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_keys(inner)
            for name, inner in value.items()
            if name.lower().replace("_", "") != "apikey"
        }
    return [_without_keys(inner) for inner in value] if isinstance(value, list) else value


def _word(value: Any) -> str | None:
    fits = isinstance(value, str) and 0 < len(value) <= _LONGEST_WORD and value.isprintable()
    return value if fits else None


def _digest(parts: list[Any]) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _refuse_depth(value: Any) -> None:
    level, pending = 1, [value]
    while pending:
        if level > DEEPEST:
            raise BadWebhook("too_deep", f"nested more than {DEEPEST} levels")
        inner = (i for v in pending for i in (v.values() if isinstance(v, dict) else v))
        pending = [item for item in inner if isinstance(item, dict | list)]
        level += 1


def _finite(text: str) -> float:
    """Infinity would be written as a word that is not JSON."""
    number = float(text)
    if isinf(number):
        raise BadWebhook("number_out_of_range", "a number is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise BadWebhook("not_a_number", f"{name} is not JSON")
