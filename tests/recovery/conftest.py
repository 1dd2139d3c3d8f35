"""Workers as processes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import pytest

from evosaga.orchestrator.config.settings import Settings
from tests.harness.chaos.worker import start_worker


@dataclass
class WorkerProcess:
    """A worker that can be killed, stopped, woken and asked to leave."""

    process: ForkServerProcess
    log: Path

    @property
    def up(self) -> bool:
        return "worker is up" in self.said

    @property
    def said(self) -> str:
        """All that it has logged."""
        return self.log.read_text() if self.log.exists() else ""

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        self._signal(SIGSTOP)

    def wake(self) -> None:
        self._signal(SIGCONT)

    def leave(self) -> int | None:
        """SIGTERM, and the exit code."""
        self._signal(SIGTERM)
        self.process.join(30)
        return self.process.exitcode

    def _signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@pytest.fixture
def spawn(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], WorkerProcess]]:
    """Starts workers; what is left of them at the end is killed."""
    assert settings.evolution_api_key
    assert settings.secret_key
    environment = {
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
        started.append(WorkerProcess(start_worker(environment, log), log))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
