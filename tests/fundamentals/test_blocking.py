"""A step that keeps the event loop to itself is named while it does."""

import time
import uuid
from typing import Any

from redis.asyncio import Redis
from structlog.testing import capture_logs

from evosaga import Command, Done, Outcome, Saga, StepContext, domain, retryable
from evosaga.events.database import Pool
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.queries import metrics
from evosaga.orchestrator.worker import running_worker
from tests.support.driving import outcome, publish
from tests.support.waiting import eventually


class Compute(Command):
    command = "sum.compute"


async def grind(_ctx: StepContext[Compute, None]) -> Outcome:
    time.sleep(1.2)  # noqa: ASYNC251  # what must not be done
    return Done()


COMPUTE = Saga(
    name="compute-a-sum",
    version=1,
    command=Compute.command,
    input=Compute,
    steps=(retryable("grind", do=grind),),
)


async def test_the_log_names_saga_step_and_line_and_a_metric_counts_the_seconds(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    with capture_logs() as logs:
        async with running_worker(settings, domain("sums", COMPUTE)) as worker:
            id_ = await publish(redis, {"id": str(uuid.uuid4()), "type": "sum.compute", "data": {}})
            assert (await outcome(pool, id_)).status == "completed"
            watchdog = worker.engine.watchdog
            assert watchdog is not None

            async def counted() -> bool:
                return bool(watchdog.blocked)

            await eventually(counted)
            text = metrics.text(metrics.of_worker(worker.engine, None, True)).decode()
    told: list[Any] = [one for one in logs if one["event"] == "a step blocks the event loop"]
    assert len(told) == 1
    assert (told[0]["saga_id"], told[0]["saga"]) == (id_, "compute-a-sum")
    assert (told[0]["step"], 0.5 <= told[0]["seconds"] < 1.2) == ("grind", True)
    assert told[0]["at"].startswith("fundamentals/test_blocking.py:")
    assert told[0]["at"].endswith(" grind")
    assert 0.9 < watchdog.blocked["compute-a-sum", "grind"] < 5
    sample = 'evosaga_loop_blocked_seconds_total{saga="compute-a-sum",step="grind"}'
    assert sample in text
