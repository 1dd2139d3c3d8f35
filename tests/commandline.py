"""The command line in processes of its own, as people and scripts call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from events.database import Pool
from orchestrator.config import Settings
from orchestrator.queries import living_workers
from tests.conftest import API_KEY, SECRET
from tests.waiting import eventually

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ran:
    """What a run of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass(frozen=True)
class Evosaga:
    """``evosaga`` with an environment of its own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def having(self, **changes: str | None) -> Evosaga:
        """The same with other variables; None takes one away."""
        changed = {f"EVOSAGA_{name.upper()}": value for name, value in changes.items()}
        merged = {**self.variables, **changed}
        return Evosaga(self.folder, {k: v for k, v in merged.items() if v is not None})

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.variables}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "orchestrator.cli", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=environment,
        )

    async def __call__(self, *arguments: str) -> Ran:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode is not None
        ran = Ran(process.returncode, out.decode(), err.decode())
        assert "Traceback" not in ran.err, ran.err
        assert "\x1b" not in ran.out, "colours in a pipe"
        return ran


def commandline(folder: Path, settings: Settings) -> Evosaga:
    """``evosaga`` against the servers of a test."""
    return Evosaga(folder).having(
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        evolution_url=settings.evolution_url,
        evolution_api_key=API_KEY,
        secret_key=SECRET,
        state_dir=str(folder / "state"),
        quiet_seconds="0.3",
        lease_seconds="1",
    )


@contextlib.asynccontextmanager
async def working(evosaga: Evosaga, pool: Pool) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own."""
    process = await evosaga.start("worker")
    try:

        async def up() -> bool:
            assert process.returncode is None, await process.communicate()
            return await living_workers(pool) > 0

        await eventually(up, 20, message="the worker to be up")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def creation(**more: str) -> list[str]:
    """The arguments of a create for an organization of its own."""
    given = {"organization-id": str(uuid.uuid4()), "clinic-id": str(uuid.uuid4()), "name": "Sol"}
    return ["create", *(f"--{name}={value}" for name, value in (given | more).items())]
