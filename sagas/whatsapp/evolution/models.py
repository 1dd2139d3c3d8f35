"""Evolution's JSON as typed values. Pure; only this module knows its field names and odd shapes.

Readers are tolerant: what is missing or of another type is None. What Postgres
can't store is not kept: NUL, half a surrogate pair, a number or a time beyond its types.

``fetchInstances`` answers with flat elements that have a ``name`` from 2.1 on, and with
``{"instance": {"instanceName", "status", "owner", "apikey"}}`` before (evolution-api#660). The
token may be null or hidden (evolution-api#657). So an instance is absent only from a list of which
every element can be read, and an element without a token does not show who owns it.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Literal, TypeAlias, TypedDict, get_args

ConnectionState: TypeAlias = Literal["open", "connecting", "close"]

_JID: Final = re.compile(r"([0-9]{6,20})(?:_[0-9]+)?(?::[0-9]+)?(?:@(?:s\.whatsapp\.net|c\.us))?")
_LINKED: Final = re.compile(r"[0-9]+(?:_[0-9]+)?(?::[0-9]+)?(?:@[a-z.]+)?")
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_LONGEST_NAME: Final = 255
"""As Evolution's own column has it."""
_LARGEST_REASON: Final = 2**31 - 1
"""That of the column ``reason`` of ``evosaga.connections``."""
_LONGEST_CODE: Final = 2000
_LONGEST_PICTURE: Final = 64 * 1024
_LONGEST_PAIRING_CODE: Final = 20
_NAMES: Final = frozenset({"name", "instanceName", "instance"})
"""What an element of the list is recognised by."""


class UnreadableList(Exception):
    """The answer proves no absence: a person must check what this Evolution lists."""


class QrCode(TypedDict):
    """A code to pair a phone with, in the form in which Redis keeps it."""

    base64: str | None
    """A picture, as a data URL."""
    code: str
    """What the picture says."""
    pairing_code: str | None
    """Eight characters to type instead; only for a pairing that began with a phone number."""


@dataclass(frozen=True, slots=True)
class InstanceState:
    """An instance as an answer's ``instance`` object describes it."""

    name: str | None
    said: str | None
    """The connection state in Evolution's own word."""

    @property
    def state(self) -> ConnectionState | None:
        """The same, None for a word of a release that we do not know."""
        return known_state(self.said)


@dataclass(frozen=True, slots=True)
class CreatedInstance:
    """The answer to a create: the instance's name and the token it got."""

    name: str | None
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Webhook:
    """The webhook of one instance, as its row says."""

    enabled: bool
    url: str | None
    events: tuple[str, ...]
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListedInstance:
    """One element of the list."""

    name: str
    token: str | None = field(repr=False)
    """None where the list does not show it, or shows one that no header can carry."""
    status: str | None
    """The database's word on the connection: ``open``, ``connecting`` or ``close``."""
    channel: str | None
    owner: str | None
    """The WhatsApp id of the phone that was linked last."""
    reason: int | None
    """Why its connection ended last, as a code of WhatsApp's."""
    closed_at: datetime | None
    """When that was."""
    has_settings: bool
    """False when its row of settings is missing; older servers do not show any."""

    @property
    def phone(self) -> str | None:
        """The digits of the phone that was linked last."""
        return phone_of(self.owner)

    @property
    def linked(self) -> bool:
        """Whether a phone was linked, even one that hides its number."""
        return linked(self.owner)


_Fields: TypeAlias = tuple[
    str, str | None, str | None, str | None, str | None, int | None, datetime | None, bool
]


class InstanceList:
    """The answer of ``fetchInstances``, of which only what we use is kept.

    It may be shared by several callers: read only, once it is complete. Inside it are plain tuples,
    which Python's garbage collector leaves alone: tens of thousands of objects would make it hold
    up everything for a tenth of a second.
    """

    __slots__ = ("_found", "_unreadable", "evolutions")

    def __init__(self, elements: Iterable[object] = ()) -> None:
        self._found: list[_Fields] = []
        self._unreadable = 0
        self.evolutions = True
        """Whether an Evolution server can have said it: it is empty, or an element has a name."""
        for element in elements:
            self.add(element)

    def add(self, element: object) -> None:
        """The next element."""
        one = _fields(element)
        named = isinstance(element, dict) and not _NAMES.isdisjoint(element)
        self.evolutions = named or (self.evolutions and len(self) > 0)
        if one is None:
            self._unreadable += 1
        else:
            self._found.append(one)

    def __len__(self) -> int:
        return len(self._found) + self._unreadable

    def find(self, name: str) -> ListedInstance | None:
        """The element of that name; None proves that the instance is not in the list.

        Of two elements of one name, one with a token is preferred. Raises ``UnreadableList``.
        """
        found = self.get(name)
        if found is None and self._unreadable:
            some = f"{self._unreadable} of {len(self)} elements of Evolution's list have no name"
            raise UnreadableList(f"{some}, so an instance that is not in it may exist all the same")
        return found

    def get(self, name: str) -> ListedInstance | None:
        """The same, where None proves nothing."""
        found: ListedInstance | None = None
        for fields in self._found:
            if fields[0] == name and (found is None or found.token is None):
                found = ListedInstance(*fields)
        return found

    def read(self) -> tuple[list[ListedInstance], int]:
        """All elements that can be read, and the number of those that can't."""
        return [ListedInstance(*fields) for fields in self._found], self._unreadable

    @property
    def unreadable(self) -> int:
        """The number of elements that can't be read."""
        return self._unreadable

    def places(self) -> dict[str, int]:
        """By name, where in the list it is: the last one of a name."""
        return {fields[0]: place for place, fields in enumerate(self._found)}

    def at(self, place: int) -> ListedInstance:
        """The element at one of those places."""
        return ListedInstance(*self._found[place])


def listed_instance(element: object) -> ListedInstance | None:
    """One element of the list; None when it has no name that can be read."""
    fields = _fields(element)
    return None if fields is None else ListedInstance(*fields)


def _fields(element: object) -> _Fields | None:
    """What is kept of an element, in the order of ``ListedInstance``."""
    if not isinstance(element, dict):
        return None
    inner = element.get("instance")
    fields = element | inner if isinstance(inner, dict) else element
    name = fields.get("instanceName", fields.get("name"))
    if not isinstance(name, str):
        return None
    channel = fields.get("integration")
    channel = channel.get("integration") if isinstance(channel, dict) else channel
    reason = fields.get("disconnectionReasonCode")
    return (
        _name(name),
        _token(fields.get("token") or fields.get("apikey")),
        _shared(fields.get("connectionStatus", fields.get("status"))),
        _shared(channel),
        _text(fields.get("ownerJid", fields.get("owner"))),
        reason if type(reason) is int and abs(reason) <= _LARGEST_REASON else None,
        _moment(fields.get("disconnectionAt")),
        fields.get("Setting", fields) is not None,
    )


def instance_list(body: object) -> InstanceList | None:
    """The list in an answer; None when the body is none."""
    if isinstance(body, InstanceList):
        return body
    return InstanceList(body) if isinstance(body, list) else None


def instance_state(body: object) -> InstanceState | None:
    """The object ``instance`` in an answer, None when there is none."""
    about = body.get("instance") if isinstance(body, dict) else None
    if not isinstance(about, dict):
        return None
    return InstanceState(_text(about.get("instanceName")), _text(about.get("state")) or None)


def known_state(said: str | None) -> ConnectionState | None:
    """A connection state, None when it is none that we know."""
    return next((state for state in get_args(ConnectionState) if state == said), None)


def created_instance(body: object) -> CreatedInstance | None:
    """The answer to a create, None when it has another shape."""
    about = instance_state(body)
    token = body.get("hash") if isinstance(body, dict) else None
    return CreatedInstance(about.name, _text(token)) if about else None


def qr_code(body: object) -> QrCode | None:
    """The QR code in an answer or a webhook; None when there is none in it."""
    if not isinstance(body, Mapping):
        return None
    picture, code, pairing = (_text(body.get(key)) for key in ("base64", "code", "pairingCode"))
    if not code or len(code) > _LONGEST_CODE:
        return None
    shown = picture and picture.startswith("data:image/") and len(picture) <= _LONGEST_PICTURE
    short = pairing is not None and len(pairing) <= _LONGEST_PAIRING_CODE
    return {
        "base64": picture if shown else None,
        "code": code,
        "pairing_code": pairing if short else None,
    }


def webhook(body: object) -> Webhook | None:
    """A webhook's row, None when the body is none."""
    if not isinstance(body, Mapping):
        return None
    events, headers = body.get("events"), body.get("headers")
    return Webhook(
        enabled=body.get("enabled") is True,
        url=_text(body.get("url")),
        events=tuple(filter(_text, events)) if isinstance(events, list) else (),
        headers={name: said for name, said in headers.items() if isinstance(said, str)}
        if isinstance(headers, Mapping)
        else {},
    )


def error_message(body: object) -> str | None:
    """What an error says, in whichever of its three shapes; None when it says nothing."""
    if not isinstance(body, dict):
        return None
    response = body.get("response")
    message = response.get("message") if isinstance(response, dict) else body.get("error")
    while isinstance(message, list) and message:
        message = message[0]
    return str(message) if message else None


def says_error(body: object) -> bool:
    """Whether it is one of the failures that come as a 200 with ``"error": true``."""
    return isinstance(body, dict) and body.get("error") is True


def phone_of(jid: object) -> str | None:
    """The phone number in a WhatsApp id such as ``5511999990000:12@s.whatsapp.net``, in digits.

    A LID (``…@lid``) stands for a person who hides the number, and is none.
    """
    fit = _JID.fullmatch(jid) if isinstance(jid, str) else None
    return fit[1] if fit else None


def linked(jid: object) -> bool:
    """Whether it is the id of a phone, with a number or as a LID."""
    return isinstance(jid, str) and _LINKED.fullmatch(jid) is not None


def _text(value: object) -> str | None:
    return _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else None


def _token(value: object) -> str | None:
    """A token; None for one that no header can carry, with which nobody can ask."""
    text = _text(value)
    return text if text and text.isascii() and text.isprintable() else None


def _name(name: str) -> str:
    """The name, or another that stands for it: one that no integration of ours can have."""
    if len(name) > _LONGEST_NAME:
        digest = sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
        name = f"{name[:200]}…{digest}"
    return _UNSTORABLE.sub("\ufffd", name)


def _shared(value: object) -> str | None:
    """One of a few words, kept once for all instances."""
    text = _text(value)
    return None if text is None else sys.intern(text)


def _moment(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
        return at.astimezone(UTC) if at is not None and at.tzinfo else None
    except (ValueError, OverflowError):
        return None
