"""Parsing of command messages: untrusted bytes until ``read_command`` has checked them.

Everything that Postgres, Python or a later reader could not process is refused here, before any
transaction: JSON that Python takes but ``jsonb`` does not (NUL, lone surrogates, NaN), duplicate
keys, numbers beyond 64 bits, bodies too large or too deep.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn
from uuid import NAMESPACE_URL, UUID, uuid5

from evosaga.events import trace_context

STEERING: Final = frozenset({"saga.replay", "saga.cancel"})
"""The commands about an existing saga."""
LARGEST: Final = 64 * 1024
"""The most bytes of a command."""
DEEPEST: Final = 32
"""The most levels of arrays and objects in a command."""

_ORGANIZATIONS: Final = UUID("0b9c1f5e-6d0a-4c57-9e4b-7a51f3f0c2d8")
_RESERVED: Final = bytes.fromhex("e705a6a0f011")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_FORBIDDEN: Final = re.compile("[\0\ud800-\udfff]")
# Ids are shown in terminals and log lines, and typed again to find the saga.
_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
_INT64: Final = 2**63


class BadCommand(Exception):
    """The message is invalid or not allowed; the sender must correct it.

    ``code`` is for programs, the text for people. The message ends in the dead-letter stream.
    ``fields``: where in ``data`` a value is wrong, and what is wrong with it.
    """

    def __init__(self, code: str, message: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fields = tuple(fields)


@dataclass(frozen=True, slots=True)
class Command:
    """A well-formed command. ``data`` is not yet validated against the command's type."""

    id: str
    type: str
    data: dict[str, Any]
    correlation_id: str | None = None
    causation_id: str | None = None
    expires_at: datetime | None = None
    """The command is refused after this time; has a time zone."""
    organization_id: UUID | None = None
    """The organization whose key gave the id: the id is unique within that organization only."""
    traceparent: str | None = None
    """The span that caused it, as W3C Trace Context has it; None where there is none to be read."""
    follow_up: bool = False
    """Whether an event of the log caused it: such ids have a namespace of their own."""

    @property
    def saga_id(self) -> UUID:
        """The id of the saga that it starts."""
        if self.follow_up:
            return _reserved_for(self.id)
        return saga_id_of(self.id, self.organization_id)

    @property
    def hash(self) -> str:
        """Digest of type and data: detects another command under the same id."""
        body = json.dumps(
            [self.type, self.data], sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return hashlib.sha256(body.encode()).hexdigest()


def saga_id_of(command_id: str, organization_id: UUID | None = None) -> UUID:
    """The saga id that belongs to a command id.

    Without an ``organization_id`` it is the command id itself when that is a UUID, else its UUIDv5
    in the URL namespace. With one it is the UUIDv5 in that organization's namespace.
    """
    literal = literal_id(command_id)
    if organization_id is not None:
        namespace = uuid5(_ORGANIZATIONS, str(organization_id))
        return uuid5(namespace, command_id if literal is None else str(literal))
    if literal is None or literal.bytes.startswith(_RESERVED):
        return uuid5(NAMESPACE_URL, command_id)
    return literal


def literal_id(text: str) -> UUID | None:
    """The text as a UUID, if it is one."""
    return UUID(text) if _UUID.fullmatch(text) else None


def _reserved_for(command_id: str) -> UUID:
    """A UUIDv8 in a reserved range: from outside, an id in it is hashed like any other text."""
    digest = _RESERVED + hashlib.sha256(command_id.encode()).digest()[: 16 - len(_RESERVED)]
    bits = int.from_bytes(digest, "big")
    bits = bits & ~(0xF << 76) | 8 << 76  # the version
    return UUID(int=bits & ~(0x3 << 62) | 2 << 62)  # the variant


def read_command(raw: bytes) -> Command:
    """Parse a command message. Raises ``BadCommand``."""
    body = read_json(raw)
    if not isinstance(body, dict):
        raise BadCommand("wrong_shape", "a command is a JSON object with id, type and data")
    if missing := [key for key in ("id", "type", "data") if key not in body]:
        raise BadCommand("wrong_shape", f"the command has no {' and no '.join(missing)}")
    if not isinstance(body["data"], dict):
        raise BadCommand("wrong_shape", "the command's data must be a JSON object")
    if body.get("specversion", "1.0") != "1.0":
        raise BadCommand("wrong_shape", "specversion, if given, must be the string 1.0")
    return Command(
        id=_text(body, "id"),
        type=_text(body, "type"),
        data=body["data"],
        correlation_id=_text(body, "correlationid") if "correlationid" in body else None,
        causation_id=_text(body, "causationid") if "causationid" in body else None,
        expires_at=_moment(body, "expirytime") if "expirytime" in body else None,
        traceparent=trace_context.valid(body.get("traceparent")),
    )


def _text(body: Mapping[str, Any], key: str) -> str:
    return checked_text(key, body[key])


def checked_text(key: str, value: Any) -> str:
    """A checked id of a command or its correlation. Raises ``BadCommand``."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise BadCommand("wrong_shape", f"{key} must be a string of 1 to 200 characters")
    if found := _CONTROL.search(value):
        what = f"a control character (U+{ord(found[0]):04X}) in {key}"
        raise BadCommand("forbidden_character", f"{what}: leave it out")
    return value


def _moment(body: Mapping[str, Any], key: str) -> datetime:
    value = body[key]
    try:
        if isinstance(value, str) and _RFC3339.fullmatch(value):
            moment = datetime.fromisoformat(value.upper())
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadCommand("wrong_shape", f"{key} must be a time such as 2026-01-31T12:00:00Z")


def read_json(raw: bytes) -> Any:
    """JSON that Postgres, Python and all other readers read alike. Raises ``BadCommand``."""
    if len(raw) > LARGEST:
        raise BadCommand("oversized", f"{len(raw)} bytes; a command may have {LARGEST}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadCommand("not_utf8", f"byte {error.start} is not UTF-8") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_int64,
            parse_float=_finite,
        )
    except RecursionError:
        raise BadCommand("too_deep", f"nested more than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        said = error.msg.removesuffix(" at")
        raise BadCommand("malformed_json", f"{said} at character {error.pos}") from None
    # Text without escapes and with few brackets can be neither too deep nor hold what is forbidden:
    # JSON strings allow no bare NUL, and UTF-8 no surrogate.
    if "\\" in text or text.count("{") + text.count("[") > DEEPEST:
        _check_depth_and_text(value)
    return value


def _check_depth_and_text(value: Any) -> None:
    level, pending = 0, [value]
    while pending:
        deeper: list[Any] = []
        for item in pending:
            if level == DEEPEST and isinstance(item, dict | list):
                raise BadCommand("too_deep", f"nested more than {DEEPEST} levels")
            if isinstance(item, dict):
                deeper += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, str) and _FORBIDDEN.search(item):
                raise BadCommand("forbidden_character", "a NUL or a lone surrogate in a text")
        level, pending = level + 1, deeper


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadCommand("duplicate_key", f"the key {twice[:80]!r} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise BadCommand("not_a_number", f"{name} is not JSON")


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -_INT64 <= (value := int(digits)) < _INT64:
        raise BadCommand("number_out_of_range", "an integer beyond 64 bits")
    return value


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise BadCommand("number_out_of_range", "a number too large for a double")
    return value


def no_control_characters(text: str) -> str:
    """The text. It ends up on people's terminals, where an escape sequence would be obeyed.

    Raises ``ValueError``.
    """
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text
