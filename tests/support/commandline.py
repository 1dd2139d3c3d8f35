"""The command line in processes of its own, as people and scripts call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.queries.sagas import living_workers
from tests.conftest import API_KEY, SECRET
from tests.support.preloaded import forkserver, run_hasty_verb, run_verb, run_verb_as
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


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
    hasty: bool = False
    """Whether it is without most of the seconds that ``reconcile`` and ``qr`` wait."""

    def having(self, **changes: str | None) -> Evosaga:
        """The same with other variables; None takes one away."""
        changed = {f"EVOSAGA_{name.upper()}": value for name, value in changes.items()}
        merged = {**self.variables, **changed}
        return replace(self, variables={k: v for k, v in merged.items() if v is not None})

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.variables}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """A process from its first byte on: what starts and stops is tested as well."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "evosaga.orchestrator.cli", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=self.environment,
        )

    async def __call__(self, *arguments: str) -> Ran:
        """Run a verb to its end."""
        ran = await forked(arguments, self.environment, self.folder, hasty=self.hasty)
        assert "Traceback" not in ran.err, ran.err
        assert "\x1b" not in ran.out, "colours in a pipe"
        return ran


async def forked(
    arguments: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    timeout: float = 60,
    user: int | None = None,
    hasty: bool = False,
    program: Callable[..., None] = run_verb,
) -> Ran:
    """Run a verb in a process that need not import anything any more; as root, as any user."""
    context = forkserver()
    (out, its_out), (err, its_err) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    with its_out, its_err:
        given = (arguments, environment, folder, its_out, its_err)
        process = (
            context.Process(target=run_hasty_verb if hasty else program, args=given, daemon=True)
            if user is None
            else context.Process(target=run_verb_as, args=(user, *given), daemon=True)
        )
        # In a thread, since the first one waits until the server has imported everything.
        await asyncio.to_thread(process.start)
    try:
        said = await asyncio.wait_for(asyncio.gather(everything(out), everything(err)), timeout)
        await eventually(lambda: process.exitcode is not None, 10, 0.005, "it to end")
        assert process.exitcode is not None
        return Ran(process.exitcode, *(text.decode() for text in said))
    finally:
        process.kill()


async def everything(pipe: Connection) -> bytes:
    """What comes out of it until its other end is closed."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(pipe.fileno()), "rb", 0)
    )
    pipe.close()
    try:
        return await reader.read()
    finally:
        transport.close()


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
