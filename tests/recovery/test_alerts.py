"""All workers are killed: somebody is told within a minute, and told again when one is back."""

import time
from collections.abc import Callable
from typing import Protocol

import pytest
from pydantic import SecretStr

from evosaga.events.database import Pool
from evosaga.orchestrator.api.server import parts_alone
from evosaga.orchestrator.config.settings import Settings
from tests.support.receiving import free_port, receiving
from tests.support.waiting import eventually


class WorkerProcess(Protocol):
    """See the conftest beside."""

    @property
    def up(self) -> bool: ...
    def kill(self) -> None: ...


async def fired(pool: Pool) -> bool:
    told = "SELECT count(*) FROM evosaga.deliveries WHERE type = 'alert.firing'"
    return bool(await pool.fetchval(told))


@pytest.mark.long
@pytest.mark.timeout(420)
@pytest.mark.parametrize("down", [180.0])
async def test_one_alert_within_a_minute_and_one_resolved_though_the_receiver_was_down_at_first(
    spawn: Callable[[], WorkerProcess], settings: Settings, pool: Pool, down: float
) -> None:
    port = free_port()
    url = SecretStr(f"http://127.0.0.1:{port}/hook")
    telling = settings.model_copy(update={"alerts_url": url, "receivers_private": True})
    workers = [spawn() for _ in range(2)]
    await eventually(lambda: all(worker.up for worker in workers), 30)
    async with parts_alone(telling):
        for worker in workers:
            worker.kill()
        killed = time.monotonic()
        await eventually(lambda: fired(pool), 60, 0.5, "an alert that no worker is alive")
        await eventually(lambda: time.monotonic() - killed > down, down + 5, 1.0)
        async with receiving(port) as stub:
            await eventually(lambda: stub.received, 60, 0.5, "the alert at the receiver")
            back = spawn()
            await eventually(lambda: back.up, 30)
            await eventually(lambda: len(stub.received) > 1, 60, 0.5, "that it is over")
            told = [(one.json["type"], one.json["data"]["code"]) for one in stub.received]
            assert told == [("alert.firing", "workers"), ("alert.resolved", "workers")]
