"""Further Evolution servers, as the setting EVOSAGA_EVOLUTION_SERVERS names them."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final
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

DEFAULT_SERVER: Final = "default"
"""The name of the server of EVOSAGA_EVOLUTION_URL. Settings are read before any domain is known,
so they have this name and the pattern of others from no domain; a test holds them to its words."""
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


def check_key(key: str, what: str) -> None:
    """Refuse what can't be sent in a header. Raises ``ValueError``, which doesn't quote it."""
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"{what} must be plain ASCII, without control characters")


def _further(name: str) -> str:
    if name == DEFAULT_SERVER:
        raise ValueError("default is the server of EVOSAGA_EVOLUTION_URL; choose another name")
    return name


def _usable(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port  # which raises when it is none
    except ValueError:
        raise ValueError(_URL) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(_URL)
    return url.rstrip("/")


def _sendable(key: SecretStr) -> SecretStr:
    if not key.get_secret_value().strip():
        raise ValueError(_KEY)
    check_key(key.get_secret_value(), "api_key")
    return key


_URL: Final = "url must start with http:// or https://, have a host, and no ? or #"
_KEY: Final = "api_key must be a text that is not empty"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class EvolutionServer:
    """Where a server is, and its global key."""

    url: Annotated[str, AfterValidator(_usable)]
    api_key: Annotated[SecretStr, AfterValidator(_sendable)]


_SERVERS: Final = TypeAdapter(
    dict[
        Annotated[str, StringConstraints(pattern=rf"\A{NAME.pattern}\z"), AfterValidator(_further)],
        EvolutionServer,
    ]
)


def read_servers(value: Any) -> dict[str, EvolutionServer]:
    """Servers by name, from JSON or from what JSON says.

    Raises ``ValueError`` with a sentence that names the server and the field and quotes no value,
    since what is wrong may be a key in the wrong place.
    """
    if isinstance(value, str):
        value = _json(value) if value.strip() else {}
    try:
        return _SERVERS.validate_python(value)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name or a field is given twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("is no JSON that anybody would write") from None


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong. A location is quoted only where it is known to be no key."""
    errors = error.errors(include_input=False, include_url=False)
    first = next((one for one in errors if one["loc"][-1:] == ("[key]",)), errors[0])
    own = str(first["ctx"]["error"]) if first["type"] == "value_error" else None
    match first["loc"]:
        case ():
            return 'must be a JSON object: {"name": {"url": "https://…", "api_key": "…"}}'
        case (_, "[key]"):
            return own or "a server's name is a-z, 0-9 and -, at most 31 characters"
        case (name, "url" | "api_key" as field) if first["type"] != "missing":
            return f"{name}: {own or (_URL if field == 'url' else _KEY)}"
        case (name, *_):
            return f"{name} must be an object with url and api_key, and nothing else"
    raise error


def refuse_twins(default: str | None, servers: Mapping[str, EvolutionServer]) -> None:
    """Two names for one server would show every instance twice. Raises ``ValueError``."""
    seen = {_place(default): DEFAULT_SERVER} if default else {}
    for name, server in servers.items():
        if (other := seen.setdefault(_place(server.url), name)) != name:
            raise ValueError(f"{name} and {other} are the same server")


def _place(url: str) -> tuple[str, str]:
    """Where that is, without a user, and whether or not a usual port is written down."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    usual = ":443" if parts.scheme == "https" else ":80"
    return host.removesuffix(usual), parts.path.rstrip("/")
