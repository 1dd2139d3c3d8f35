"""The verb ``dev``: everything on this machine, and how to use it from another terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli import connections, params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.run import migrated, on_signals
from evosaga.orchestrator.cli.serve import listen

if TYPE_CHECKING:
    import socket

    from evosaga.orchestrator.config.settings import Settings


def dev(
    *,
    evolution_port: params.Port = 0,
    port: params.Port | None = None,
    out: params.Out,
) -> int:
    """Run the servers, the simulated Evolution, a worker and the API until told to stop.

    Args:
        evolution_port: port of the simulated Evolution server (default: a free one)
        port: port of the dashboard and the API (default: 8080, or a free one if that is taken)
    """
    from evosaga.orchestrator import app
    from evosaga.orchestrator.config import log_config

    with _alone(), connections.servers(out) as settings:
        log_config.configure(settings)
        try:
            asyncio.run(_run(settings, evolution_port, port, out))
        except app.Broken as error:
            out.problem(f"a part of the worker broke: {error}")
            return UNFINISHED
    out.note("evosaga: stopped; what it stored is kept for the next time")
    return DONE


async def _run(settings: Settings, evolution_port: int, port: int | None, out: Output) -> None:
    from evosaga.orchestrator import app
    from evosaga.orchestrator.api.server import address, serve_until

    stop = asyncio.Event()
    on_signals(stop.set)
    await migrated(settings)
    async with contextlib.AsyncExitStack() as stack:
        given: dict[str, str] = {}
        simulated = settings.evolution_url is None and app.has_whatsapp(settings)
        if simulated:
            from evosaga.orchestrator.local.evolution import SimulatedEvolution

            key = settings.evolution_api_key
            api_key = key.get_secret_value() if key else secrets.token_hex(16)
            simulator = SimulatedEvolution(api_key=api_key, port=evolution_port)
            try:
                await stack.enter_async_context(simulator)
            except OSError as error:
                said = f"can't use port {evolution_port}: {error.strerror}"
                raise CliError(WRONG, said) from error
            given |= {"evolution_url": simulator.url, "evolution_api_key": api_key}
        if settings.secret_key is None:
            given["secret_key"] = kept_secret(_state() / "secret-key")
        if settings.api_keys is None:
            given["api_keys"] = f"dev:{kept_secret(_state() / 'api-key')}"
        listener = stack.enter_context(_listener(settings, port))
        if simulated and settings.public_url is None:
            given["public_url"] = address(listener)  # so that pairing is seen at once
        if given:
            from evosaga.orchestrator.config.settings import load_settings

            urls = {"database_url": settings.database_url, "redis_url": settings.redis_url}
            settings = load_settings(**urls, **given)
        _tell(settings, given, address(listener), out)
        await serve_until(stop, settings, listener)


def _listener(settings: Settings, port: int | None) -> socket.socket:
    """Listen on the port that was asked for, else on the usual one, else on any."""
    try:
        return listen(settings, None, port)
    except CliError:
        if port is not None:
            raise
        return listen(settings, None, 0)


def kept_secret(path: Path) -> str:
    """The secret in that file, made if there is none; only this account may read it."""
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, f"{secrets.token_hex(32)}\n".encode())
        os.close(file)
    return path.read_text().strip()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One ``dev`` a state folder: two simulated Evolutions on one database would disagree."""
    with (_state() / "dev.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"`evosaga dev` is running already on {_state()}; EVOSAGA_STATE_DIR moves it"
            raise CliError(WRONG, said) from None
        yield


def _state() -> Path:
    from evosaga.orchestrator.local.paths import make_own_folder, state_folder

    folder = state_folder()
    try:
        # Root's servers run as another account, which must be able to pass.
        make_own_folder(folder, 0o700 if os.geteuid() else 0o711)
    except OSError as error:
        said = f"can't use the state folder {folder}: {error.strerror or error}"
        raise CliError(WRONG, f"{said}; EVOSAGA_STATE_DIR names another one") from error
    return folder


def _tell(settings: Settings, given: dict[str, str], http: str, out: Output) -> None:
    """What is there, and ready-to-paste ways to use it."""
    simulated = given.get("evolution_url")
    api_key = given.get("api_keys", "").partition(":")[2] or None
    if out.json:
        out.data(
            {
                "database_url": settings.database_url if _embedded("DATABASE_URL") else None,
                "redis_url": settings.redis_url if _embedded("REDIS_URL") else None,
                "evolution_url": settings.evolution_url,
                "evolution_api_key": given.get("evolution_api_key"),
                "url": http,
                "api_key": api_key,
                "state_folder": str(_state()),
            }
        )
        return
    from evosaga.orchestrator import app

    whatsapp = app.has_whatsapp(settings)
    program = _program()
    lines = ["", f"evosaga dev: everything is running. The dashboard is at {http}/"]
    lines.append(f"and opens with the key {api_key or '(one of EVOSAGA_API_KEYS)'}")
    lines += ["", "In another terminal:", ""]
    if folder := os.environ.get("EVOSAGA_STATE_DIR"):
        lines.append(f"  export EVOSAGA_STATE_DIR={shlex.quote(folder)}")
    if not whatsapp:
        lines += [f"  {program} sagas", f"  {program} start COMMAND --data JSON"]
    else:
        lines += [
            f"  {program} create --name 'Clínica Sol' \\",
            "      --organization-id $(python3 -c 'import uuid; print(uuid.uuid4())') \\",
            "      --clinic-id $(python3 -c 'import uuid; print(uuid.uuid4())')",
            f"  {program} delete INSTANCE",
        ]
    lines += [
        f"  {program} list",
        f"  curl -H 'X-API-Key: {api_key or 'KEY'}' {http}/sagas",
    ]
    if simulated:
        lines += _of_the_simulator(settings, given, http)
    # Only those of our own servers, which have no password.
    for name, url in (("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url)):
        if _embedded(name):
            lines.append(f"  export EVOSAGA_{name}={shlex.quote(url or '')}")
    for line in [*lines, "", "Ctrl-C stops everything; what was stored is kept.", ""]:
        out.line(line)


def _of_the_simulator(settings: Settings, given: dict[str, str], http: str) -> list[str]:
    """What to type about the simulated Evolution server."""
    simulated = given["evolution_url"]
    control = f"{simulated}/__control__"
    lines = [
        "",
        f"The Evolution server is simulated, on {simulated}; it forgets when this ends.",
        "Let the phone scan the QR code, or the next create be refused and rolled back, or be",
        "answered with 500 although it was made (evosaga looks, and keeps it):",
        "",
        f'  curl {control}/pair -d \'{{"name": "INSTANCE"}}\'',
        f"  curl {control}/faults -d '"
        '{"mode": "reject", "operation": "create", "message": "Invalid integration"}\'',
        f'  curl {control}/faults -d \'{{"mode": "5xx_after", "operation": "create"}}\'',
        "",
        "For what asks Evolution itself (reconcile, health, doctor, qr, replay --plan), for",
        "more workers, and for redis-cli, psql and docs/routing_worker.py:",
        "",
        f"  export EVOSAGA_EVOLUTION_URL={simulated}",
        f"  export EVOSAGA_EVOLUTION_API_KEY={shlex.quote(given['evolution_api_key'])}",
        f"  export EVOSAGA_PUBLIC_URL={given.get('public_url', http)}",
    ]
    if "secret_key" in given:
        file = shlex.quote(str(_state() / "secret-key"))
        lines.append(f'  export EVOSAGA_SECRET_KEY="$(cat {file})"')
    return lines


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


def _embedded(variable: str) -> bool:
    """Whether the address is ours; one that was given may hold a password."""
    return not (os.environ.get(f"EVOSAGA_{variable}") or os.environ.get(variable))
