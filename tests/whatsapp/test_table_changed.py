"""``healthcare.integrations`` that somebody changes after it was migrated."""

import uuid
from typing import Any

from redis.asyncio import Redis

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp import row_refusals
from tests.support.driving import create, dead_letters, delete, outcome, publish
from tests.support.waiting import eventually


async def test_a_row_that_others_point_at_is_not_begun_to_be_deleted(
    pool: Pool, settings: Settings, redis: Redis, evolution: SimulatedEvolution
) -> None:
    await pool.execute(
        "CREATE TABLE messages (integration_id uuid CONSTRAINT written_by "
        "REFERENCES healthcare.integrations)"
    )
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        await pool.execute("INSERT INTO messages VALUES ($1)", made.saga_id)
        kept = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        assert (kept.status, kept.code) == ("rejected", row_refusals.REFUSED)
        assert "the foreign key written_by of public.messages still points" in str(kept.message)
        assert list(evolution.live()) == [made.instance_name]
        await pool.execute("DELETE FROM messages")
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        assert gone.status == "completed"


async def test_our_own_table_is_looked_at_once_a_minute_and_no_row_is_tried_for(
    pool: Pool, settings: Settings, redis: Redis, evolution: SimulatedEvolution
) -> None:
    await pool.execute("CREATE SEQUENCE tries")
    async with running_worker(settings) as worker:
        async with pool.acquire() as connection:
            assert await worker.services.table.plain(connection)
        # Seen only a minute later, so only the row itself sets it off.
        await pool.execute(
            "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM nextval('public.tries'); RETURN NEW; END $$;"
            "CREATE TRIGGER noted BEFORE INSERT ON healthcare.integrations "
            "FOR EACH ROW EXECUTE FUNCTION noted()"
        )
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
    assert await pool.fetchval("SELECT last_value FROM tries") == 1


async def test_a_rule_that_nobody_knew_of_costs_one_try(
    pool: Pool, settings: Settings, redis: Redis, evolution: SimulatedEvolution
) -> None:
    """It came after the last look at the table, so the instance is there by then and is undone."""
    async with running_worker(settings):
        assert (await outcome(pool, await publish(redis, create()))).status == "completed"
        await pool.execute(
            "ALTER TABLE healthcare.integrations ADD CONSTRAINT named "
            "CHECK (config ->> 'name' <> 'Nobody')"
        )
        saga = await outcome(pool, await publish(redis, create(name="Nobody")))
    assert (saga.status, saga.code) == ("compensated", row_refusals.REFUSED)
    assert "the constraint named" in str(saga.message)
    assert len(evolution.rows()) == 1


async def test_a_role_that_may_not_write_holds_commands_until_it_may(
    pool: Pool, settings: Settings, redis: Redis, evolution: SimulatedEvolution
) -> None:
    assert settings.database_url is not None
    role = f"role_{uuid.uuid4().hex[:8]}"
    await pool.execute(
        f"CREATE ROLE {role} LOGIN BYPASSRLS; GRANT USAGE ON SCHEMA evosaga, healthcare TO {role};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA evosaga TO {role};"
        f"GRANT SELECT ON healthcare.integrations TO {role}"
    )
    as_role = settings.database_url.replace("postgres@", f"{role}@")
    try:
        async with running_worker(settings.model_copy(update={"database_url": as_role})):
            id_ = await publish(redis, create())

            async def read() -> bool:
                pending: Any = await redis.xpending("evosaga:commands", "orchestrator")
                return bool(pending["pending"] == 1)

            await eventually(read)
            assert evolution.journal.requests("create") == []
            await pool.execute(f"GRANT ALL ON healthcare.integrations TO {role}")
            assert (await outcome(pool, id_, 70)).status == "completed"
        assert await dead_letters(redis) == []
    finally:
        await pool.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
