"""Words that commands share, and what they may look like.

An instance name becomes part of a URL, a Redis key and a plain JavaScript object on Evolution's
side, so it is held to a narrow alphabet and kept off the names that mean something there.
"""

import unicodedata
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints

DEFAULT_SERVER: Final = "default"
"""The Evolution server of EVOSAGA_EVOLUTION_URL, which is meant wherever none is named."""
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


def _safe_url(url: str) -> str:
    # urlsplit drops tabs and newlines before it looks; whoever reads the URL next may not.
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


def _no_control_characters(text: str) -> str:
    """A name ends up on people's terminals, where an escape sequence would be obeyed."""
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text


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
ServerName = Annotated[str, StringConstraints(pattern=_SERVER)]
ClinicName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=120),
    AfterValidator(_no_control_characters),
]
Remark = Annotated[str, StringConstraints(max_length=500), AfterValidator(_no_control_characters)]
"""Why somebody wants something, in his own words."""
PhoneNumber = Annotated[str, StringConstraints(pattern=_NUMBER)]
WebhookUrl = Annotated[str, AfterValidator(_safe_url)]
