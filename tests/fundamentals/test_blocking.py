"""A step that keeps the event loop to itself is named while it does."""

import re
import time
import uuid
from typing import Any

from redis.asyncio import Redis
from structlog.testing import capture_logs

from evosaga import Command, Done, Outcome, Saga, StepContext, domain, retryable
from evosaga.events.database import Pool
from evosaga.orchestrator.cli.doctor_blocking import check_blocking
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.blocking import LoopWatchdog, _Block
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


async def test_log_metric_alert_and_doctor_name_the_saga_the_step_and_the_line(
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

            async def alerted() -> bool:
                return bool(await pool.fetchval(_TOLD))

            await eventually(alerted, 15, message="the alert")
            [finding] = [one async for one in check_blocking(pool)]
    told: list[Any] = [one for one in logs if one["event"] == "a step blocks the event loop"]
    assert len(told) == 1
    assert (told[0]["saga_id"], told[0]["saga"]) == (id_, "compute-a-sum")
    assert (told[0]["step"], 0.5 <= told[0]["seconds"] < 1.2) == ("grind", True)
    assert told[0]["at"].startswith("fundamentals/test_blocking.py:")
    assert told[0]["at"].endswith(" grind")
    assert 0.9 < watchdog.blocked["compute-a-sum", "grind"] < 5
    sample = 'evosaga_loop_blocked_seconds_total{saga="compute-a-sum",step="grind"}'
    assert sample in text
    row = await pool.fetchrow("SELECT * FROM evosaga.alerts WHERE code = 'loop_blocked'")
    assert row is not None
    assert row["key"] == "loop_blocked/compute-a-sum/grind"
    assert row["of_process"], "it ends when no worker reports it any more"
    said = r"the step grind of compute-a-sum blocks the event loop: once within 5 minutes, .* s, at"
    assert re.match(rf"{said} fundamentals/test_blocking.py:\d+ grind", row["message"])
    assert (finding.check, finding.verdict, finding.said) == ("event loop", "warn", row["message"])
    assert "asyncio.to_thread" in finding.cure


_TOLD = "SELECT true FROM evosaga.alerts WHERE code = 'loop_blocked' AND fires_at <= now()"


async def test_what_blocked_long_ago_or_for_a_moment_is_no_alert() -> None:
    watchdog = LoopWatchdog(lambda _: None)
    now = time.monotonic()
    watchdog._lately = [
        _Block(now - 400, 9.0, ("s", "long-ago"), "x"),
        _Block(now, 0.6, ("s", "short"), "x"),
        _Block(now, 9.0, ("-", "-"), "x"),  # no step of anybody's
        *(_Block(now, 0.6, ("s", "often"), "x") for _ in range(2)),
    ]
    assert [one.key for one in watchdog.conditions()] == ["loop_blocked/s/often"]
