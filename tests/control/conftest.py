"""A create that can be parked at will, and the command line beside its worker."""

import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from evosaga.events.commands import Command
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.queries.sagas import SagaView
from evosaga.sagas.definition import InCommit, Retry, Step
from evosaga.sagas.outcome import Outcome, Rejected
from evosaga.sagas.registry import SagaRegistry, discover, registry_of
from evosaga.sagas.whatsapp.services import Context
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, outcome, publish
from tests.support.workers import Worker


@dataclass
class Gossip:
    """A step of a create that can be made to refuse. At ``notify`` that parks the saga."""

    refuses: bool = True
    name: str = "notify"
    attempts: int = 2
    """Of every step of a create."""

    def of(self, step: Step) -> Step:
        async def tell(ctx: Context) -> Outcome:
            if self.refuses:
                return Rejected("no_voice", "nobody can be told")
            assert not isinstance(step.do, InCommit)
            return await step.do(ctx)

        return replace(step, do=tell)

    def registry(self) -> SagaRegistry:
        """All sagas, a create with this step."""
        return registry_of(
            replace(
                saga,
                steps=tuple(
                    self.of(step) if step.name == self.name else step
                    for step in impatient_steps(saga.steps, self.attempts)
                ),
            )
            if saga.name == "create-integration"
            else saga
            for saga in discover().versions.values()
        )


def impatient_steps(steps: Iterable[Step], attempts: int) -> list[Step]:
    """The same with few attempts and short pauses."""
    retry = Retry(attempts=attempts, first=0.05, factor=1.0)
    return [replace(step, retry=retry) for step in steps]


@pytest.fixture
def gossip() -> Gossip:
    return Gossip()


@pytest.fixture
async def worker(settings: Settings, gossip: Gossip) -> AsyncIterator[Worker]:
    async with running_worker(settings, gossip.registry()) as worker:
        yield worker


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def parked(pool: Pool, redis: Redis, **more: Any) -> SagaView:
    """A create that has made everything and is stuck at telling it."""
    saga = await outcome(pool, await publish(redis, create(**more)))
    assert (saga.status, saga.step) == ("failed", "notify")
    return saga


def command(kind: str, saga: SagaView) -> Command:
    return Command(id=str(uuid.uuid4()), type=kind, data={"saga_id": str(saga.saga_id)})


async def send(redis: Redis, kind: str, saga: SagaView) -> str:
    wish = command(kind, saga)
    return await publish(redis, {"id": wish.id, "type": wish.type, "data": wish.data})
