"""Postgres says no for reasons that pass, at every place where it is written to."""

from functools import partial

import pytest
from redis.asyncio import Redis

import evosaga.orchestrator.worker
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.support.driving import (
    contradictions,
    create,
    dead_letters,
    delete,
    outcome,
    publish,
    story,
)

PASSING = {
    "40001": "B9 can't serialise, and deadlocks",
    "25006": "E4 read-only after a failover",
    "53100": "E5 disk full, and whatever else is used up",
}
# A sequence keeps counting when its transaction is rolled back: every second try is refused.
REFUSE = """
CREATE SEQUENCE refusals_saga_events;
CREATE SEQUENCE refusals_integrations;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('refusals_' || TG_TABLE_NAME) % 2 = 1 THEN
        RAISE EXCEPTION 'not now' USING ERRCODE = '{code}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refuse AFTER INSERT ON evosaga.saga_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse AFTER INSERT OR DELETE ON healthcare.integrations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
"""


@pytest.mark.fault("b9", "d10", "e4", "e5")
@pytest.mark.parametrize("code", PASSING)
async def test_a_refusal_that_passes_costs_no_attempt_and_repeats_no_effect(
    settings: Settings, pool: Pool, redis: Redis, evolution: SimulatedEvolution, code: str
) -> None:
    await pool.execute(REFUSE.format(code=code))
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
    assert (made.status, gone.status) == ("completed", "completed")
    assert await pool.fetchval("SELECT last_value FROM refusals_saga_events") > 12, "it refused"
    assert await pool.fetchval("SELECT last_value FROM refusals_integrations") >= 4
    for saga in (made, gone):
        assert not [line for line in await story(pool, saga) if line.startswith("step.failed")]
    assert len(evolution.journal.requests("create")) == 1
    assert len(evolution.journal.requests("delete")) == 1
    assert await dead_letters(redis) == []
    assert await contradictions(pool) == []


@pytest.mark.fault("e13")
async def test_with_few_connections_sagas_wait_for_one_and_end(
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is the relay's, which holds its leader's lock; all the rest share the other."""
    monkeypatch.setattr(evosaga.orchestrator.worker, "open_pool", partial(open_pool, size=2))
    async with running_worker(settings):
        ids = [await publish(redis, create()) for _ in range(20)]
        for id_ in ids:
            assert (await outcome(pool, id_)).status == "completed"
    assert len(evolution.rows()) == 20
    assert await contradictions(pool) == []
