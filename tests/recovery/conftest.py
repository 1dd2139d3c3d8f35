"""Workers as processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import pytest

from orchestrator.config import Settings

ROOT = Path(__file__).parents[2]


@dataclass
class WorkerProcess:
    """A worker that can be killed, stopped, woken and asked to leave."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def up(self) -> bool:
        return "worker is up" in self.said

    @property
    def said(self) -> str:
        """All that it has logged."""
        return self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(SIGCONT)

    def leave(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def spawn(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], WorkerProcess]]:
    """Starts workers; what is left of them at the end is killed."""
    assert settings.evolution_api_key
    assert settings.secret_key
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "EVOSAGA_DATABASE_URL": str(settings.database_url),
        "EVOSAGA_REDIS_URL": str(settings.redis_url),
        "EVOSAGA_EVOLUTION_URL": str(settings.evolution_url),
        "EVOSAGA_EVOLUTION_API_KEY": settings.evolution_api_key.get_secret_value(),
        "EVOSAGA_SECRET_KEY": settings.secret_key.get_secret_value(),
        "EVOSAGA_LEASE_SECONDS": str(settings.lease_seconds),
        "EVOSAGA_QUIET_SECONDS": str(settings.quiet_seconds),
        "EVOSAGA_EVOLUTION_TIMEOUT": str(settings.evolution_timeout),
    }
    started: list[WorkerProcess] = []

    def start() -> WorkerProcess:
        log = tmp_path / f"worker-{len(started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("worker_process.py"))],
                env=environment,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        started.append(WorkerProcess(process, log))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
