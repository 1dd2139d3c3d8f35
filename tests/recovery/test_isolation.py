"""What one saga, one row or one worker suffers must not become the others' trouble."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.recovery import look
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.definition import InCommit, Retry, Step
from evosaga.sagas.outcome import Outcome
from evosaga.sagas.registry import registry_of
from evosaga.sagas.whatsapp.create_integration import CREATE_INTEGRATION
from tests.support.driving import create, delete, outcome, publish, story


@pytest.mark.fault("e12")
async def test_a_row_that_somebody_holds_delays_its_own_saga_alone(
    settings: Settings, database_url: str, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        assert made.instance_name
        person = await asyncpg.connect(database_url)
        holding = person.transaction()
        await holding.start()
        await person.execute("UPDATE healthcare.integrations SET updated_at = now()")
        waiting = await publish(redis, delete(made.instance_name))
        others = [await publish(redis, create()) for _ in range(5)]
        for other in others:
            assert (await outcome(pool, other, timeout=8)).status == "completed"
        await holding.rollback()
        await person.close()
        assert (await outcome(pool, waiting)).status == "completed"


async def _explode(connection: Any, contexts: Sequence[Any]) -> list[Outcome]:
    await connection.execute("SELECT 1 / 0")
    raise AssertionError("unreachable")


async def test_an_effect_that_raises_inside_the_commit_is_an_attempt_like_any_other(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution
) -> None:
    evolution_step, postgres, *rest = CREATE_INTEGRATION.steps
    broken: Step = replace(postgres, do=InCommit(_explode), retry=Retry(attempts=2, first=0.05))
    sagas = registry_of([replace(CREATE_INTEGRATION, steps=(evolution_step, broken, *rest))])
    async with running_worker(settings, sagas):
        saga = await outcome(pool, await publish(redis, create()))
    assert (saga.status, saga.step) == ("compensated", None)
    told = await story(pool, saga)
    assert "step.succeeded evolution" in told, "what was done before is not forgotten"
    assert told.count("step.failed postgres") == 2
    assert not evolution.rows()


async def test_of_two_workers_that_sweep_at_once_one_takes_a_saga(
    database_url: str, pool: Pool
) -> None:
    """The loser waits for the row, looks again, and finds an owner that is alive."""
    await pool.execute(
        "INSERT INTO evosaga.workers (worker_id, lease_until) "
        "SELECT 'worker-' || n, now() + interval '1 hour' FROM generate_series(1, 3) AS n"
    )
    for _ in range(40):
        await pool.execute("DELETE FROM evosaga.sagas")
        await pool.execute(
            "INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, "
            "command_hash, correlation_id, next_sequence, next_at, owner) "
            "SELECT gen_random_uuid(), 'create-integration', 1, 'running', n::text, n::text, '', "
            "'', 2, now(), 'gone' FROM generate_series(1, 100) AS n"
        )
        taken = await asyncio.gather(
            *(
                look(pool, f"worker-{n}", 500, [("create-integration", 1)], watched="gone")
                for n in (1, 2, 3)
            )
        )
        ids = [row["saga_id"] for rows in taken for row in rows]
        assert len(ids) == len(set(ids))
        assert await pool.fetchval("SELECT count(*) FROM evosaga.sagas WHERE owner = 'gone'") == 0
