"""Further Evolution servers, as the setting EVOSAGA_EVOLUTION_SERVERS names them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

DEFAULT_SERVER: Final = "default"
"""The name of the server of EVOSAGA_EVOLUTION_URL. Settings are read before any domain is known,
so they have this name and the pattern of others from no domain; a test holds them to its words."""
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_FIELDS: Final = frozenset({"url", "api_key"})


@dataclass(frozen=True, slots=True)
class EvolutionServer:
    """Where a server is, and its global key."""

    url: str
    api_key: SecretStr


def read_servers(value: Any) -> dict[str, EvolutionServer]:
    """Servers by name, from JSON or from what JSON says.

    Raises ``ValueError`` with a sentence that names the server and the field and quotes no value,
    since what is wrong may be a key in the wrong place.
    """
    if isinstance(value, str):
        value = _json(value) if value.strip() else {}
    if not isinstance(value, Mapping):
        raise ValueError('must be a JSON object: {"name": {"url": "https://…", "api_key": "…"}}')
    return {_name(name): _server(name, said) for name, said in value.items()}


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


def _name(name: Any) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError("a server's name is a-z, 0-9 and -, at most 31 characters")
    if name == DEFAULT_SERVER:
        raise ValueError("default is the server of EVOSAGA_EVOLUTION_URL; choose another name")
    return name


def _server(name: str, said: Any) -> EvolutionServer:
    if isinstance(said, EvolutionServer):
        return said
    if not isinstance(said, Mapping) or set(said) != _FIELDS:
        raise ValueError(f"{name} must be an object with url and api_key, and nothing else")
    url, key = said["url"], said["api_key"]
    key = key.get_secret_value() if isinstance(key, SecretStr) else key
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"{name}: api_key must be a text that is not empty")
    check_key(key, f"{name}: api_key")
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
    except ValueError:
        parts = None
    if parts is None or not _usable(parts):
        raise ValueError(
            f"{name}: url must start with http:// or https://, have a host, and no ? or #"
        )
    return EvolutionServer(str(url).rstrip("/"), SecretStr(key))


def _usable(parts: SplitResult) -> bool:
    try:
        _ = parts.port  # which raises when it is none
    except ValueError:
        return False
    more = parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not more


def check_key(key: str, what: str) -> None:
    """Refuse what can't be sent in a header. Raises ``ValueError``, which doesn't quote it."""
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"{what} must be plain ASCII, without control characters")


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
