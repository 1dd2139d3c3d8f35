"""The verbs ``serve`` (HTTP and a worker) and ``api`` (HTTP alone)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from evosaga.orchestrator.cli import connections
from evosaga.orchestrator.cli import lazy_params as params
from evosaga.orchestrator.cli.errors import DONE, UNFINISHED, WRONG, CliError
from evosaga.orchestrator.cli.output import Output
from evosaga.orchestrator.cli.run import look_first, on_signals, require, settle

if TYPE_CHECKING:
    import socket

    from evosaga.orchestrator.config.settings import Settings


def serve(
    *, host: params.ListenHost = None, port: params.ListenPort = None, out: params.Out
) -> int:
    """Run the API, the dashboard and a worker in one process."""
    return _serve(host, port, out, worker=True)


def api(*, host: params.ListenHost = None, port: params.ListenPort = None, out: params.Out) -> int:
    """Run the API and the dashboard; workers elsewhere carry out what is accepted."""
    return _serve(host, port, out, worker=False)


def listen(settings: Settings, host: str | None, port: int | None) -> socket.socket:
    """Take the address, or say in a sentence why that can't be."""
    from evosaga.orchestrator.api.server import bind

    host, port = host or settings.host, settings.port if port is None else port
    try:
        return bind(host, port)
    except OSError as error:
        said = f"can't listen on {host}, port {port}: {error.strerror or error}"
        raise CliError(WRONG, f"{said}; --host and --port choose another address") from error


def _serve(host: str | None, port: int | None, out: Output, *, worker: bool) -> int:
    require(out, http=True)
    with connections.servers(out) as settings:
        # The API alone starts without Redis: it accepts in Postgres.
        asyncio.run(look_first(settings, redis=worker))
        from evosaga.orchestrator import app
        from evosaga.orchestrator.api.server import address
        from evosaga.orchestrator.config import (
            log_config,  # slow, so only once we know that it is worth it
        )

        log_config.configure(settings)
        with listen(settings, host, port) as listener:
            out.note(f"evosaga: the dashboard and the API are at {address(listener)}")
            try:
                asyncio.run(_run(settings, listener, worker=worker))
            except app.Broken as error:
                out.problem(f"a part of the process broke: {error}")
                return UNFINISHED
    return DONE


async def _run(settings: Settings, listener: socket.socket, *, worker: bool) -> None:
    from evosaga.orchestrator.api.server import serve_until

    stop = asyncio.Event()
    on_signals(stop.set)
    settle()
    await serve_until(stop, settings, listener, worker=worker)
