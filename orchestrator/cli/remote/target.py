"""Which server a verb speaks to over HTTP, if it does at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from evosaga.orchestrator.cli import profiles
from evosaga.orchestrator.cli.errors import WRONG, CliError

URL: Final = "EVOSAGA_URL"
API_KEY: Final = "EVOSAGA_API_KEY"
PROFILE: Final = "EVOSAGA_PROFILE"
_DATABASE: Final = ("EVOSAGA_DATABASE_URL", "DATABASE_URL")
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Wish:
    """The options ``--url``, ``--api-key`` and ``--profile``."""

    url: str | None = None
    api_key: str | None = None
    profile: str | None = None

    def __bool__(self) -> bool:
        return any((self.url, self.api_key, self.profile))


@dataclass(frozen=True, slots=True)
class Target:
    """A server, its key, and what named them."""

    url: str
    api_key: str = field(repr=False)
    source: str
    silent: bool = False
    """Whether nothing on the command line or in the environment chose it."""


def target_of(wish: Wish, variables: dict[str, str], *, dev_runs: bool = False) -> Target | None:
    """The server to speak to; None: the databases themselves, as before. Raises ``CliError``.

    An option goes before a variable, that before a profile. The profile of the last ``login`` is
    used only where no database is given and no ``evosaga dev`` runs. ``variables`` are those of
    the environment and of ``.env``.
    """
    url, key = wish.url or variables.get(URL), wish.api_key or variables.get(API_KEY)
    if url and not wish.profile:
        named = "--url" if wish.url else URL
        return Target(checked_url(url, named), checked_key(key), named)
    name = wish.profile or variables.get(PROFILE)
    if name:
        one = profiles.load().named(profiles.checked_name(name))
        return Target(
            checked_url(wish.url or one.url, f"the profile {name}"),
            wish.api_key or one.api_key,
            f"profile {name}",
        )
    if wish.api_key:
        raise CliError(WRONG, f"--api-key needs the server it is for: give --url, or set {URL}")
    if dev_runs or any(variables.get(each) for each in _DATABASE):
        return None
    known = profiles.load(named=False)
    if known.current is None:
        return None
    one = known.known[known.current]
    url = checked_url(one.url, f"the profile {known.current}")
    return Target(url, one.api_key, f"profile {known.current}", silent=True)


def variables(wish: Wish) -> dict[str, str]:
    """What the environment and ``.env`` say; the environment goes first. Raises ``CliError``."""
    from evosaga.orchestrator.config.dotenv import DotenvError, dotenv

    told: dict[str, str] = {}
    try:
        file = dotenv()
    except DotenvError as error:
        raise CliError(WRONG, str(error)) from None
    if file is not None:
        from dotenv import dotenv_values

        told = {k: v for k, v in dotenv_values(file, encoding="utf-8-sig").items() if v}
        if not (wish.url or wish.profile):
            _require_one_source(file, told)
    return told | {name: value for name, value in os.environ.items() if value}


def _require_one_source(file: Path, told: Mapping[str, str]) -> None:
    """A ``.env`` of somebody else's folder must not draw a key of the environment to its server."""
    if URL in told and API_KEY not in told and API_KEY in os.environ and URL not in os.environ:
        said = f"{URL} is from {file}, {API_KEY} from the environment, and a key goes only where"
        raise CliError(WRONG, f"{said} both are named together: set {URL} as well, or give --url")


def checked_url(url: str, named: str) -> str:
    """The address without a slash at its end. Raises ``CliError``."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fits = fits and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        fits = False
    if not fits:
        said = f"{named} is no address of a server"
        raise CliError(WRONG, f"{said}: write https://evosaga.example.com, without user or query")
    return url.rstrip("/")


def in_the_clear(url: str) -> bool:
    """Whether the key would go over a network without TLS."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOCAL


def checked_key(key: str | None) -> str:
    """The key, which has no blanks or odd characters. Raises ``CliError``."""
    if not key:
        said = f"there is no API key: give --api-key, set {API_KEY}"
        raise CliError(WRONG, f"{said}, or run `evosaga login` once")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CliError(WRONG, "the API key has characters that no key has: is it quoted right?")
    return key
