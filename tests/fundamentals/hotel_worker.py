"""A worker of the hotel in a process that has no WhatsApp: importing any of it raises.

Its settings come from the environment, and none of them is Evolution's. SIGTERM ends it.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Final

BLOCKED: Final = ("evosaga.sagas.whatsapp", "evosaga.orchestrator.whatsapp")


class Deleted(MetaPathFinder):
    """Makes it as if these packages had been deleted, but louder."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raises ``ImportError`` for what is blocked; everything else is looked for elsewhere."""
        if name in BLOCKED or name.startswith(tuple(f"{package}." for package in BLOCKED)):
            raise ImportError(f"{name} was deleted")


async def main() -> None:
    """Run until SIGTERM."""
    from evosaga.orchestrator.config.settings import load_settings
    from evosaga.orchestrator.worker import serve_until
    from tests.fundamentals.test_your_first_saga import HOTEL

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve_until(stop, load_settings(_env_file=None), HOTEL)


if __name__ == "__main__":
    sys.meta_path.insert(0, Deleted())
    asyncio.run(main())
