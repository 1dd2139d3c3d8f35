"""A worker as a process of its own, to be killed, stopped and woken. Settings: the environment."""

import asyncio
import signal

from orchestrator.app import serve_until
from orchestrator.config import load_settings


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve_until(stop, load_settings(_env_file=None))


if __name__ == "__main__":
    asyncio.run(main())
