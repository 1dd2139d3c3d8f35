"""Types that commands share, with their limits.

An instance name becomes part of a URL, a Redis key and a plain JavaScript object on Evolution's
side, so a new one is held to a narrow alphabet and kept off the names that mean something there.
An existing name is refused only where no request can address it.
"""

import unicodedata
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints

from evosaga.events.commands import no_control_characters

DEFAULT_SERVER: Final = "default"
"""The Evolution server of EVOSAGA_EVOLUTION_URL, which is meant wherever none is named."""
CANT_BE_HANDLED: Final = (
    "this name can't be handled: remove its instance by hand on Evolution, and its row in Postgres"
)
_LONGEST_NAME: Final = 255
"""Characters that Evolution's database takes."""
_INHERITED: Final = frozenset(
    {
        "constructor",
        "hasOwnProperty",
        "isPrototypeOf",
        "propertyIsEnumerable",
        "toLocaleString",
        "toString",
        "undefined",
        "valueOf",
        "__defineGetter__",
        "__defineSetter__",
        "__lookupGetter__",
        "__lookupSetter__",
        "__proto__",
    }
)
"""What every JavaScript object has, so that Evolution takes such an instance for there."""
_RESERVED: Final = frozenset({"constructor", "create", "fetchinstances", "undefined", "null"})


def server_entry(server: str | None) -> dict[str, str]:
    """How a row or a command says on which server something is: not at all where it is ``default``.

    So what there always was keeps its words, and a release that knows one server only reads it.
    """
    return {} if server in (None, DEFAULT_SERVER) else {"server": str(server)}


def _not_reserved(name: str) -> str:
    if name in _RESERVED:
        raise ValueError(f"{name!r} means something else to Evolution; choose another name")
    return name


def unaddressable(name: str) -> str | None:
    """Why no request can safely be about an existing instance of that name; None: one can be.

    Percent-encoding keeps most characters what they are. But dots alone and slashes are resolved
    by clients and proxies on the way, encoded or not, and Evolution looks names up in an object.
    """
    if not 1 <= len(name) <= _LONGEST_NAME:
        return f"it must have 1 to {_LONGEST_NAME} characters"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "slashes, and dots alone, mean another address"
    if name in _INHERITED:
        return "it means something else to Evolution"
    if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "it has control characters"
    return None


def _addressable(name: str) -> str:
    if why := unaddressable(name):
        raise ValueError(f"{CANT_BE_HANDLED} ({why})")
    return name


def _safe_url(url: str) -> str:
    # urlsplit drops tabs and newlines before it looks; the next reader of the URL may not.
    if not url.isprintable() or " " in url:
        raise ValueError("must not contain spaces or control characters")
    try:
        parts = urlsplit(url)
        _ = parts.port  # which raises when it is none
    except ValueError:  # its text may quote a password
        raise ValueError("is not a URL") from None
    credentials = parts.username or parts.password
    if parts.scheme not in ("https", "http") or not parts.hostname or credentials:
        raise ValueError("must be an http(s) URL with a host and without a user or password")
    return url


_NAME: Final = r"\A[a-z0-9][a-z0-9-]{2,62}\z"
_SERVER: Final = r"\A[a-z0-9][a-z0-9-]{0,30}\z"
_NUMBER: Final = r"\A[0-9]{6,20}\z"
SHAPES: Final = {
    _NAME: "must be 3 to 63 characters of a-z, 0-9 and -, and must not begin with -",
    _SERVER: "must be 1 to 31 characters of a-z, 0-9 and -, and must not begin with -",
    _NUMBER: "must be 6 to 20 digits, without + and spaces",
}
"""What a pattern asks for, for people."""
InstanceName = Annotated[
    str,
    StringConstraints(pattern=_NAME),
    AfterValidator(_not_reserved),
]
"""What a new instance may be called."""
ExistingName = Annotated[str, AfterValidator(_addressable)]
"""What one may be called that is there already."""
ServerName = Annotated[str, StringConstraints(pattern=_SERVER)]
ClinicName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=120),
    AfterValidator(no_control_characters),
]
PhoneNumber = Annotated[str, StringConstraints(pattern=_NUMBER)]
WebhookUrl = Annotated[str, AfterValidator(_safe_url)]
