"""The servers and workers of the demo, and its output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from evosaga.events.clock import LIVING
from evosaga.orchestrator.cli.follow import Seen, follow
from evosaga.orchestrator.cli.integrations import new_id
from evosaga.orchestrator.cli.render import timeline
from evosaga.orchestrator.demo.assertions import Assertions, NotSo, eventually

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from evosaga.events.database import Pool
    from evosaga.orchestrator.cli.output import Output
    from evosaga.orchestrator.local.evolution import SimulatedEvolution

_WIDTH: Final = 90
_ROOT: Final = Path(__file__).parents[3]
_READING: Final = 0.8
"""Seconds after a scene, so that a person can follow."""
_PATIENCE: Final = 30.0


class Show:
    """What the audience sees: colours on a terminal, plain text in a pipe."""

    def __init__(self, out: Output) -> None:
        self.out = out

    def title(self, text: str) -> None:
        """The line everything begins with."""
        self._line(text, "bold")

    def scene(self, text: str) -> None:
        """The heading of a scene."""
        self.out.line()
        self._line(f"── {text} {'─' * max(4, _WIDTH - len(text) - 4)}", "bold cyan")

    def say(self, text: str) -> None:
        """A remark."""
        for line in textwrap.wrap(text, _WIDTH):
            self._line(line, "dim")

    def tick(self, sentence: str) -> None:
        """A claim that was checked."""
        first, *rest = textwrap.wrap(sentence, _WIDTH - 4)
        self._line(f"  ✓ {first}", "green")
        for line in rest:
            self._line(f"    {line}", "green")

    def end(self, text: str) -> None:
        """The line everything ends with."""
        self.out.line()
        self._line(text, "bold green")

    async def pause(self) -> None:
        """Let a person read; a pipe needs no time."""
        if self.out.terminal:
            await asyncio.sleep(_READING)

    def _line(self, text: str, style: str) -> None:
        if not self.out.terminal:
            self.out.line(text)
            return
        from rich.text import Text

        self.out.console.print(Text(text, style=style), soft_wrap=True)


@dataclass(slots=True)
class Worker:
    """A worker in a process of its own."""

    name: str
    process: subprocess.Popen[bytes]

    async def ended(self) -> int:
        """Its exit code, once it has one; minus the signal that killed it."""
        return await asyncio.to_thread(self.process.wait, _PATIENCE)


@dataclass(slots=True)
class Stage:
    """Everything a scene may touch, and ways to look at the three stores."""

    show: Show
    claim: Assertions
    pool: Pool
    redis: Redis
    evolution: SimulatedEvolution
    workers: list[Worker]

    async def ask(self, type_: str, data: dict[str, Any], command_id: str | None = None) -> UUID:
        """Publish a command with a plain XADD, as any program can; its saga's id."""
        from evosaga.events import streams

        saga_id = command_id or new_id()
        await streams.publish_command(self.redis, {"id": saga_id, "type": type_, "data": data})
        return UUID(saga_id)

    async def watch(self, saga_id: UUID, steps: Sequence[str] = ()) -> Seen:
        """Show a saga as it happens, until it is over."""
        with timeline(self.show.out, steps) as told:
            seen = await follow(self.pool, saga_id, told, timeout=_PATIENCE)
        if not seen.over:
            raise NotSo(f"saga {saga_id} is over within {_PATIENCE:.0f} s")
        return seen

    async def row(self, name: str) -> dict[str, Any] | None:
        """The row of an instance in Postgres."""
        found = await self.pool.fetchrow(
            "SELECT * FROM healthcare.integrations WHERE config ->> 'instance_name' = $1", name
        )
        return dict(found) if found else None

    async def key(self, name: str) -> dict[str, Any] | None:
        """The routing key of an instance in Valkey."""
        raw = await self.redis.get(f"whatsapp:instance:{name}")
        return dict(json.loads(raw)) if raw else None

    def instance(self, name: str) -> bool:
        """Whether Evolution has it, in either of its two views."""
        return name in self.evolution.live() or name in self.evolution.rows()

    async def left_of(self, name: str) -> list[str]:
        """The stores in which anything of an instance is left."""
        found = {
            "Evolution": self.instance(name),
            "Postgres": await self.row(name) is not None,
            "Valkey": await self.key(name) is not None
            or await self.redis.exists(f"evosaga:qr:{name}"),
        }
        return [store for store, there in found.items() if there]

    def applied(self, name: str) -> list[str]:
        """When an instance was really made and removed, in order, from Evolution's journal."""
        told = [entry.applied for entry in self.evolution.journal if entry.name == name]
        return [applied for applied in told if applied in ("created", "removed")]


@contextlib.contextmanager
def workers(count: int, environment: dict[str, str], log: Path) -> Iterator[list[Worker]]:
    """Worker processes; whatever becomes of the demo, they end with it."""
    inherited = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "LC_ALL")}
    with log.open("wb") as output:
        started = [
            Worker(
                name,
                subprocess.Popen(
                    [sys.executable, "-m", "evosaga.orchestrator.demo.worker"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd=log.parent,  # no .env of somebody's lies there
                    env=inherited | environment | {"PYTHONPATH": str(_ROOT)},
                    start_new_session=True,  # Ctrl-C is ours to pass on
                ),
            )
            for name in "ABCDEF"[:count]
        ]
    try:
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.communicate()


async def all_alive(pool: Pool, started: Sequence[Worker], log: Path) -> None:
    """Wait until every worker has shown a sign of life in Postgres."""

    async def alive() -> bool:
        if any(worker.process.poll() is not None for worker in started):
            raise NotSo(f"the workers run: {_end_of(log)}")
        names = await pool.fetch(f"SELECT worker_id FROM evosaga.workers WHERE {LIVING}")  # noqa: S608
        return {pid_of(row["worker_id"]) for row in names} == {w.process.pid for w in started}

    await eventually(alive, "the workers are up", within=_PATIENCE)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def pid_of(worker_id: str) -> int:
    """A worker's id is its host's name, its process id and something random."""
    return int(worker_id.rsplit("-", 2)[1])
