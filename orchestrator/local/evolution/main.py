"""Runs the simulated server alone, for other projects' tests."""

import asyncio
import json
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evosaga.orchestrator.local.evolution.server import SimulatedEvolution


def main_simulate(
    port: int,
    journal: Path | None,
    *,
    api_key: str | None = None,
    as_json: bool = False,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT. ``options`` are those of SimulatedEvolution.

    Without an ``api_key`` one is generated. Prints the address and the key; OSError when the port
    is in use.
    """
    from evosaga.orchestrator.local.evolution.server import SimulatedEvolution  # slow: aiohttp

    key = api_key or secrets.token_hex(16)
    server = SimulatedEvolution(api_key=key, port=port, journal=journal, **options)
    asyncio.run(serve(server, as_json=as_json))


async def serve(server: "SimulatedEvolution", *, as_json: bool = False) -> None:
    """Run until a signal arrives, then stop cleanly."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server:
        sys.stdout.write(_announcement(server, as_json))
        sys.stdout.flush()
        await stop.wait()


def _announcement(server: "SimulatedEvolution", as_json: bool) -> str:
    if as_json:
        return json.dumps({"url": server.url, "api_key": server.api_key}) + "\n"
    return (
        f"Simulated Evolution API on {server.url}\n"
        f"  apikey: {server.api_key}\n"
        f"  faults, pairing and journal: {server.url}/__control__/\n"
    )
