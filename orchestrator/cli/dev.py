"""The verb ``dev``: everything on this machine, and how to use it from another terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli import connections, dev_news, params, running_dev
from evosaga.orchestrator.cli.dev_page import embedded, page
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.run import migrated, on_signals
from evosaga.orchestrator.cli.serve import listen

if TYPE_CHECKING:
    import socket

    from evosaga.orchestrator.config.settings import Settings

_INSTANCES: Final = "evolution.json"
"""What the simulated Evolution server has stored."""


def dev(
    *,
    evolution_port: params.Port = 0,
    port: params.Port | None = None,
    fresh: bool = False,
    out: params.Out,
) -> int:
    """Run the servers, the simulated Evolution, a worker and the API until told to stop.

    Args:
        evolution_port: port of the simulated Evolution server (default: a free one)
        port: port of the dashboard and the API (default: 8080, or a free one if that is taken)
        fresh: forget what the embedded servers and the simulated Evolution have stored
    """
    from evosaga.orchestrator import app
    from evosaga.orchestrator.config import log_config

    if fresh and not (embedded("DATABASE_URL") and embedded("REDIS_URL")):
        said = "--fresh empties the embedded servers, and a database or Redis was given"
        raise CliError(WRONG, f"{said}: leave --fresh out, or unset the variable that names it")
    with _alone(), connections.servers(out, join_dev=False) as settings:
        log_config.configure(settings)
        try:
            asyncio.run(_run(settings, evolution_port, port, fresh, out))
        except app.Broken as error:
            out.problem(f"a part of the worker broke: {error}")
            return UNFINISHED
    out.note("evosaga: stopped; what it stored is kept for the next time")
    return DONE


async def _run(
    settings: Settings, evolution_port: int, port: int | None, fresh: bool, out: Output
) -> None:
    from evosaga.orchestrator import app
    from evosaga.orchestrator.api.server import address, serve_until

    stop = asyncio.Event()
    on_signals(stop.set)
    if fresh:
        await _forget(settings)
    await migrated(settings)
    async with contextlib.AsyncExitStack() as stack:
        given: dict[str, str] = {}
        simulated = settings.evolution_url is None and app.has_whatsapp(settings)
        if simulated:
            given |= await _simulated(settings, evolution_port, stack)
        if settings.secret_key is None:
            given["secret_key"] = kept_secret(state() / "secret-key")
        if settings.api_keys is None:
            given["api_keys"] = f"dev:{kept_secret(state() / 'api-key')}"
        listener = stack.enter_context(_listener(settings, port))
        if simulated and settings.public_url is None:
            given["public_url"] = address(listener)  # so that pairing is seen at once
        if given:
            from evosaga.orchestrator.config.settings import load_settings

            urls = {"database_url": settings.database_url, "redis_url": settings.redis_url}
            settings = load_settings(**urls, **given)
        # First the file: whoever reads what is told may call a verb at once.
        stack.enter_context(running_dev.announced(state(), _facts(settings, given, listener)))
        _tell(settings, given, address(listener), out)
        if not out.json:
            assert settings.redis_url is not None
            await stack.enter_async_context(
                dev_news.told(settings.redis_url, settings.redis_prefix, out)
            )
        await serve_until(stop, settings, listener)


async def _simulated(
    settings: Settings, port: int, stack: contextlib.AsyncExitStack
) -> dict[str, str]:
    """Start the simulated Evolution server with what it knew the last time; where it is."""
    from evosaga.orchestrator.local.evolution import SimulatedEvolution, storage

    key = settings.evolution_api_key
    api_key = key.get_secret_value() if key else kept_secret(state() / "evolution-key")
    simulator = SimulatedEvolution(api_key=api_key, port=port)
    try:
        await stack.enter_async_context(simulator)
    except OSError as error:
        raise CliError(WRONG, f"can't use port {port}: {error.strerror}") from error
    await stack.enter_async_context(storage.kept(simulator, state() / _INSTANCES))
    return {"evolution_url": simulator.url, "evolution_api_key": api_key}


async def _forget(settings: Settings) -> None:
    """Empty the embedded servers, which are ours, and the simulated Evolution's database."""
    from evosaga.events import streams
    from evosaga.events.postgres_hosts import connect

    assert settings.database_url is not None
    assert settings.redis_url is not None
    connection = await connect(settings.database_url, statement_cache_size=0, timeout=10)
    try:
        await connection.execute("DROP SCHEMA IF EXISTS evosaga, healthcare CASCADE")
    finally:
        await connection.close()
    redis = streams.connect(settings.redis_url)
    await redis.flushall()
    await redis.aclose()
    (state() / _INSTANCES).unlink(missing_ok=True)


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
    with (state() / running_dev.LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"`evosaga dev` is running already on {state()}; EVOSAGA_STATE_DIR moves it"
            raise CliError(WRONG, said) from None
        yield


def state() -> Path:
    from evosaga.orchestrator.local.paths import make_own_folder, state_folder

    folder = state_folder()
    try:
        # Root's servers run as another account, which must be able to pass.
        make_own_folder(folder, 0o700 if os.geteuid() else 0o711)
    except OSError as error:
        said = f"can't use the state folder {folder}: {error.strerror or error}"
        raise CliError(WRONG, f"{said}; EVOSAGA_STATE_DIR names another one") from error
    return folder


def _facts(
    settings: Settings, given: dict[str, str], listener: socket.socket
) -> dict[str, str | None]:
    """What other verbs need to use the same servers."""
    from evosaga.orchestrator.api.server import address

    key, secret = settings.evolution_api_key, settings.secret_key
    return {
        "url": address(listener),
        "api_key": given.get("api_keys", "").partition(":")[2] or None,
        # Embedded ones are found by the folder, and run as long as anybody uses them.
        "database_url": None if embedded("DATABASE_URL") else settings.database_url,
        "redis_url": None if embedded("REDIS_URL") else settings.redis_url,
        "evolution_url": settings.evolution_url,
        "evolution_api_key": key.get_secret_value() if key else None,
        "secret_key": secret.get_secret_value() if secret else None,
        "public_url": settings.public_url,
    }


def _tell(settings: Settings, given: dict[str, str], http: str, out: Output) -> None:
    """What is there, and ready-to-paste ways to use it."""
    if out.json:
        out.data(
            {
                "database_url": settings.database_url if embedded("DATABASE_URL") else None,
                "redis_url": settings.redis_url if embedded("REDIS_URL") else None,
                "evolution_url": settings.evolution_url,
                "evolution_api_key": given.get("evolution_api_key"),
                "url": http,
                "api_key": given.get("api_keys", "").partition(":")[2] or None,
                "state_folder": str(state()),
            }
        )
        return
    from evosaga.orchestrator import app

    whatsapp = app.has_whatsapp(settings)
    for line in page(settings, given, http, state(), whatsapp=whatsapp):
        out.line(line)
