"""The routing worker of the docs, as a process, run as anybody would run it."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from evosaga.orchestrator.config.settings import Settings

_ROOT = Path(__file__).parents[2]


class SampleWorker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> Any:
        """The next line."""
        assert self.process.stdout is not None
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 30))


@contextlib.asynccontextmanager
async def sample_worker(settings: Settings) -> AsyncIterator[SampleWorker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_ROOT / "docs" / "routing_worker.py"),
        str(settings.redis_url),
        str(settings.database_url),
        settings.redis_prefix,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield SampleWorker(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
