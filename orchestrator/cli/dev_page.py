"""What ``evosaga dev`` prints at its start: ready-to-paste ways to use it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from evosaga.orchestrator.config.settings import Settings


def page(
    settings: Settings, given: dict[str, str], http: str, folder: Path, *, whatsapp: bool
) -> Iterator[str]:
    """The lines. ``given`` are the settings that ``dev`` made itself, ``folder`` its state's."""
    api_key = given.get("api_keys", "").partition(":")[2]
    program = _program()
    yield from ("", f"evosaga dev: everything is running. The dashboard is at {http}/")
    yield f"and opens with the key {api_key or '(one of EVOSAGA_API_KEYS)'}"
    yield from ("", "In another terminal, where every verb finds this by itself:", "")
    if chosen := os.environ.get("EVOSAGA_STATE_DIR"):
        yield f"  export EVOSAGA_STATE_DIR={shlex.quote(chosen)}"
    if whatsapp:
        yield from (
            f"  {program} create --name 'Clínica Sol' \\",
            "      --organization-id $(python3 -c 'import uuid; print(uuid.uuid4())') \\",
            "      --clinic-id $(python3 -c 'import uuid; print(uuid.uuid4())')",
            f"  {program} health",
            f"  {program} delete INSTANCE",
        )
    else:
        yield from (f"  {program} sagas", f"  {program} start COMMAND --data JSON")
    yield from (
        f"  {program} list",
        f"  curl -H 'X-API-Key: {api_key or 'KEY'}' {http}/sagas",
    )
    if simulated := given.get("evolution_url"):
        yield from _simulated(simulated)
    yield from _stores(settings)
    yield from _exports(settings, given, http, folder)
    yield from ("", "Ctrl-C stops everything; what was stored is kept, unless the next start is")
    yield from (f"{program} dev --fresh. What happens is told below.", "")


def _simulated(url: str) -> Iterator[str]:
    control = f"{url}/__control__"
    yield from (
        "",
        f"The Evolution server is simulated, on {url}.",
        "Let the phone scan the QR code, or the next create be refused and rolled back, or be",
        "answered with 500 although it was made (evosaga looks, and keeps it):",
        "",
        f'  curl {control}/pair -d \'{{"name": "INSTANCE"}}\'',
        f"  curl {control}/faults -d '"
        '{"mode": "reject", "operation": "create", "message": "Invalid integration"}\'',
        f'  curl {control}/faults -d \'{{"mode": "5xx_after", "operation": "create"}}\'',
    )


def _stores(settings: Settings) -> Iterator[str]:
    """How to look into the embedded servers; a program that is not here is named as missing."""
    commands = []
    if embedded("DATABASE_URL"):
        commands.append(_psql(settings.database_url or ""))
    if embedded("REDIS_URL"):
        commands.append(_redis_cli(settings.redis_url or ""))
    if commands:
        yield from ("", "To look into Postgres and Valkey:", "", *commands)


def _psql(url: str) -> str:
    program = shutil.which("psql") or _psql_of_the_wheel()
    return f"  {shlex.quote(program or 'psql')} {shlex.quote(url)}{_missing(program, 'psql')}"


def _psql_of_the_wheel() -> str | None:
    from evosaga.orchestrator.local.binaries import LocalServerUnavailable, find_postgres

    try:
        beside = find_postgres(None).path.with_name("psql")
    except LocalServerUnavailable:
        return None
    return str(beside) if os.access(beside, os.X_OK) else None


def _redis_cli(url: str) -> str:
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    parts = urlsplit(url)
    where = f"-s {shlex.quote(parts.path)}" if parts.scheme == "unix" else f"-u {shlex.quote(url)}"
    return f"  {shlex.quote(program or 'redis-cli')} {where}{_missing(program, 'redis-cli')}"


def _missing(program: str | None, name: str) -> str:
    return "" if program else f"   # {name} is not installed here"


def _exports(settings: Settings, given: dict[str, str], http: str, folder: Path) -> Iterator[str]:
    """Variables for programs that are not evosaga's, and for workers of other checkouts."""
    names = {"evolution_url": "EVOLUTION_URL", "evolution_api_key": "EVOLUTION_API_KEY"}
    known = {name: given[field] for field, name in names.items() if field in given}
    if given.get("evolution_url"):
        known["PUBLIC_URL"] = given.get("public_url", http)
    # Only those of our own servers, which have no password.
    for name, url in (("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url)):
        if embedded(name):
            known[name] = url or ""
    if not known:
        return
    router = ", routing workers (evosaga.routing) among them" if given.get("evolution_url") else ""
    yield from ("", f"For programs of your own{router}:", "")
    yield from (f"  export EVOSAGA_{name}={shlex.quote(value)}" for name, value in known.items())
    if "secret_key" in given:
        file = shlex.quote(str(folder / "secret-key"))
        yield f'  export EVOSAGA_SECRET_KEY="$(cat {file})"'


def _program() -> str:
    """How this command is called from the folder one is in: `make dev` puts it on no PATH."""
    if shutil.which("evosaga"):
        return "evosaga"
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py":  # python -m orchestrator.cli
        script = str(Path(sys.executable).with_name("evosaga"))
        if not os.path.exists(script):
            return f"{shlex.quote(sys.executable)} -m evosaga.orchestrator.cli"
    called = os.path.relpath(script)
    return shlex.quote(called if not called.startswith("..") else os.path.abspath(script))


def embedded(variable: str) -> bool:
    """Whether the address is ours; one that was given may hold a password."""
    return not (os.environ.get(f"EVOSAGA_{variable}") or os.environ.get(variable))
