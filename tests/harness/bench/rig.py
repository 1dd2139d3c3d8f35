"""The rig: real Postgres and Valkey of its own, the stub, and the processes under measurement."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import httpx
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import streams
from evosaga.orchestrator.local.servers import local_servers
from tests.harness.bench import stub
from tests.harness.bench.peers import Peer

Process: TypeAlias = "subprocess.Popen[bytes]"
ROOT: Final = Path(__file__).parents[3]
SECRET: Final = "a-secret-key-of-thirty-two-bytes-or-more"
LONGEST: Final = 120.0


class Slow(Exception):
    """What was measured did not finish; the measurement says nothing."""


def spawn(arguments: Sequence[str], log: Path, **environment: str) -> Process:
    """A process of ours, on this interpreter."""
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=log.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )


def end(process: Process, patience: float = 0.0) -> None:
    """Kill it and wait for it; one that has children gets so long to end them and itself first."""
    if patience:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=patience)  # its input is closed, which tells it
            return
    process.kill()
    process.communicate()


@dataclass
class Rig:
    """Everything a measurement needs. ``folder`` holds the logs."""

    postgres: str
    redis_url: str
    evolution: str
    folder: Path
    redis: Redis
    servers: dict[str, list[int]]
    """The process ids of what a worker talks to, by name."""
    processes: list[Process] = field(default_factory=list)

    # --- a fresh place ------------------------------------------------------------------------

    async def fresh(self) -> "Database":
        """An empty, migrated database, an empty Valkey, and a stub that has forgotten."""
        await self.redis.flushall()
        await self.tell_stub("forget")
        name = f"bench_{uuid.uuid4().hex[:8]}"
        admin = await asyncpg.connect(self.postgres)
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE evosaga_template")
        await admin.close()
        url = urlsplit(self.postgres)._replace(path=f"/{name}").geturl()
        return Database(url, await asyncpg.connect(url))

    async def stub_says(self) -> dict[str, Any]:
        """What the stub counted."""
        async with httpx.AsyncClient() as http:
            told: dict[str, Any] = (await http.get(f"{self.evolution}/instance/bench")).json()
            return told

    async def tell_stub(self, wish: str) -> None:
        """``silence/create``: creates are made, but not answered, until ``answer``."""
        async with httpx.AsyncClient() as http:
            (await http.post(f"{self.evolution}/instance/{wish}")).raise_for_status()

    # --- processes ----------------------------------------------------------------------------

    async def worker(self, database: str, **environment: str) -> Process:
        """One worker of ours, up and reading."""
        log = self.folder / f"worker-{len(self.processes)}.log"
        process = spawn(
            ["-m", "evosaga.orchestrator.cli", "worker"],
            log,
            EVOSAGA_DATABASE_URL=database,
            EVOSAGA_REDIS_URL=self.redis_url,
            EVOSAGA_EVOLUTION_URL=self.evolution,
            EVOSAGA_EVOLUTION_API_KEY=stub.KEY,
            EVOSAGA_SECRET_KEY=SECRET,
            EVOSAGA_LOG_LEVEL="info",
            **environment,
        )
        self.processes.append(process)
        up = "a worker to start"
        await until(lambda: b"worker is up" in log.read_bytes() or process.poll() is not None, up)
        if process.poll() is not None:
            raise Slow(f"a worker ended before it was up: {log.read_text()[-2000:]}")
        return process

    async def ideal(self, database: str, *how: str) -> Process:
        """The ideal loop, up and reading; with ``bare`` on the HTTP transport alone."""
        process = spawn(
            ["-m", "tests.harness.bench.ideal", database, self.redis_url, self.evolution, *how],
            self.folder / "ideal.log",
        )
        self.processes.append(process)
        await first_line(process)
        return process

    async def peer(self, peer: Peer, database: str) -> Process:
        """One of the others, up and reading."""
        process = spawn(
            ["-m", peer.module, database, self.redis_url, self.evolution, *peer.arguments],
            self.folder / f"{peer.name}.log",
        )
        self.processes.append(process)
        await first_line(process)
        return process

    # --- commands -----------------------------------------------------------------------------

    async def publish(self, stream: str, commands: Sequence[dict[str, Any]]) -> float:
        """XADD all of them; the moment of the first."""
        began = time.perf_counter()
        for start in range(0, len(commands), 500):
            pipeline = self.redis.pipeline(transaction=False)
            for command in commands[start : start + 500]:
                pipeline.xadd(stream, {"data": json.dumps(command)})
            await pipeline.execute()
        return began


@dataclass
class Database:
    """A database of one measurement."""

    url: str
    connection: Any

    async def completed(self, table: str, count: int, status: str = "completed") -> float:
        """The moment that many sagas have that status."""
        query = f"SELECT count(*) FROM {table} WHERE status = $1"
        began = time.perf_counter()
        while await self.connection.fetchval(query, status) < count:
            if (waited := time.perf_counter() - began) > LONGEST:
                raise Slow(f"{table}: not {count} {status} within {LONGEST:g} s")
            # Counting takes from what is being measured, so two per cent must do.
            await asyncio.sleep(max(0.01, waited / 50))
        return time.perf_counter()


def creates(count: int) -> list[dict[str, Any]]:
    """That many different commands."""
    return [
        {
            "id": str(uuid.uuid4()),
            "type": "integration.create",
            "data": {
                "organization_id": str(uuid.uuid4()),
                "clinic_id": str(uuid.uuid4()),
                "name": "Clínica Sol",
                "channel": "EVOLUTION",
            },
        }
        for _ in range(count)
    ]


async def until(holds: Any, what: str, seconds: float = 60.0) -> None:
    """Wait for it. Raises ``Slow``."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Slow(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(0.02)


async def first_line(process: Process) -> str:
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    if not line:
        raise Slow("a process ended before it was up; see its log")
    return line.decode().strip()


@contextlib.asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """Start everything, and end everything."""
    with _servers() as (postgres, redis_url), tempfile.TemporaryDirectory() as folder:
        admin = await asyncpg.connect(postgres)
        for setting in ("fsync", "synchronous_commit"):
            assert await admin.fetchval(f"SHOW {setting}") == "on", setting
        await admin.execute("CREATE DATABASE evosaga_template")
        await admin.close()
        await migrations.migrate(urlsplit(postgres)._replace(path="/evosaga_template").geturl())
        evolution = spawn(["-m", "tests.harness.bench.stub"], Path(folder) / "stub.log")
        redis = streams.connect(redis_url)
        assert (await redis.config_get("appendonly"))["appendonly"] == "yes"
        url = f"http://127.0.0.1:{await first_line(evolution)}"
        servers = {
            "Postgres": [await _postmaster(postgres)],
            "Valkey": [(await redis.info("server"))["process_id"]],
            "stub": [evolution.pid],
        }
        one = Rig(postgres, redis_url, url, Path(folder), redis, servers)
        try:
            yield one
        finally:
            for process in (*one.processes, evolution):
                if process.poll() is None:
                    end(process, patience=5)
            await redis.aclose()


async def _postmaster(url: str) -> int:
    """The process whose children are the backends, and everything else that Postgres does."""
    admin = await asyncpg.connect(url)
    folder = await admin.fetchval("SHOW data_directory")
    await admin.close()
    return int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])


@contextlib.contextmanager
def _servers() -> Iterator[tuple[str, str]]:
    with local_servers() as local:
        yield local.postgres.url, local.valkey.url
