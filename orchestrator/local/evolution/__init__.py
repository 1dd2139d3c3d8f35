"""A simulated Evolution API server: real HTTP, and the real server's behaviour with its quirks.

It behaves as evolution-api 2.3.7 (or 2.3.6) was observed to behave. What it answers, when it
answers and what it really does are separate on purpose, since clients of the real server must
handle the difference. Every request, and every effect that happened, goes to a journal.

    async with SimulatedEvolution(api_key="key", pace=0.01) as evolution:
        evolution.arm("5xx_after", operation="create", times=1)
        ...
        evolution.pair("an-instance")

The names below are loaded on first use: aiohttp is slow to import, and the CLI must start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evosaga.orchestrator.local.evolution.fault_modes import MODES
    from evosaga.orchestrator.local.evolution.journal import Journal, JournalEntry
    from evosaga.orchestrator.local.evolution.main import main_simulate, serve
    from evosaga.orchestrator.local.evolution.server import SimulatedEvolution

__all__ = ["MODES", "Journal", "JournalEntry", "SimulatedEvolution", "main_simulate", "serve"]

_HOMES = {
    "MODES": "fault_modes",
    "Journal": "journal",
    "JournalEntry": "journal",
    "SimulatedEvolution": "server",
    "main_simulate": "main",
    "serve": "main",
}


def __getattr__(name: str) -> object:
    if home := _HOMES.get(name):
        return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
