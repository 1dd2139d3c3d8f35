"""The verbs ``login`` and ``logout``: keep a server's address and key in a profile."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from typing import Annotated

from cyclopts import Parameter

from evosaga.orchestrator.cli import params, profiles
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.remote.target import (
    URL,
    Target,
    checked_key,
    checked_url,
    in_the_clear,
)

_FIRST = "default"


def login(
    *,
    url: Annotated[params.Text | None, Parameter(metavar="URL")] = None,
    api_key: Annotated[params.Text | None, Parameter(metavar="KEY")] = None,
    profile: Annotated[params.Name, Parameter(metavar="NAME")] = _FIRST,
    out: params.Out,
) -> int:
    """Ask for what is missing, try it, and keep it.

    Args:
        url: the server's address, https://…
        api_key: one of its EVOSAGA_API_KEYS; better typed when asked, or given on stdin
        profile: the name to keep it under (default: default); it is the current one from now on
    """
    name = profiles.checked_name(profile)
    known = profiles.load()
    before = known.known.get(name)
    url = (
        url
        or os.environ.get(URL)
        or (before.url if before else None)
        or _asked("URL of the server: ", "--url", out)
    )
    key = api_key or _key_asked(out)
    target = Target(checked_url(url, "--url"), checked_key(key), f"profile {name}")
    asyncio.run(_tried(target))
    known.known[name] = profiles.Profile(target.url, target.api_key)
    known.current = name
    file = profiles.save(known)
    if in_the_clear(target.url):
        out.note("evosaga: the key goes over the network in the clear; https:// would protect it")
    if out.json:
        out.data({"profile": name, "url": target.url, "file": str(file)})
    else:
        out.line(f"signed in at {target.url}; kept as the profile {name} in {file}")
    return DONE


def logout(
    *,
    profile: Annotated[params.Name | None, Parameter(metavar="NAME")] = None,
    out: params.Out,
) -> int:
    """Forget a profile and its key.

    Args:
        profile: which one (default: the current one)
    """
    known = profiles.load()
    name = profile or known.current
    if name is None:
        raise CliError(WRONG, "there is no profile to forget")
    gone = known.named(name)
    del known.known[name]
    if known.current == name:
        known.current = next(iter(sorted(known.known)), None)
    profiles.save(known)
    if out.json:
        out.data({"profile": name, "url": gone.url, "current": known.current})
    else:
        left = f"; the current one is {known.current} now" if known.current else ""
        out.line(f"forgot the profile {name} ({gone.url}){left}")
    return DONE


async def _tried(target: Target) -> None:
    """One request with the key. Raises ``CliError`` for whatever is wrong with either."""
    from evosaga.orchestrator.cli.remote.session import connect

    async with connect(target) as client:
        await client.list(limit=1)


def _asked(question: str, option: str, out: Output) -> str:
    if out.json or not sys.stdin.isatty():
        raise CliError(WRONG, f"give {option}: there is no terminal to ask at")
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _key_asked(out: Output) -> str:
    """From the terminal without an echo, or from a pipe, which shows it in no process list."""
    if sys.stdin is None:
        raise CliError(WRONG, "give --api-key; stdin is closed")
    if sys.stdin.isatty():
        return getpass.getpass("API key: ")
    return sys.stdin.readline().strip()
