"""``healthcare.integrations`` as somebody else has made it.

What can be served is served, what can't is told by ``migrate`` and ``doctor`` in one line, and
nothing is sent to Evolution for a row that the table would not take.
"""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events.database import Pool, open_pool
from evosaga.migrations.preflight import Unfit
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp import row_refusals
from tests.conftest import Servers
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, dead_letters, delete, outcome, publish
from tests.support.sampled import sampled

KNOWN = "11111111-1111-1111-1111-111111111111"
UNKNOWN = "22222222-2222-2222-2222-222222222222"


def table(**changed: str) -> str:
    """The table with some columns written otherwise; one that is empty is left out."""
    columns = {
        "id": "uuid PRIMARY KEY DEFAULT gen_random_uuid()",
        "organization_id": "uuid NOT NULL",
        "type": "text NOT NULL",
        "provider": "text NOT NULL",
        "status": "text NOT NULL DEFAULT 'pending'",
        "enabled": "boolean NOT NULL DEFAULT true",
        "config": "jsonb NOT NULL DEFAULT '{}'",
        "webhook_token": "text",
        "whatsapp_number": "text",
        "created_at": "timestamptz NOT NULL DEFAULT now()",
        "updated_at": "timestamptz NOT NULL DEFAULT now()",
    } | changed
    lines = ", ".join(f"{name} {kind}" for name, kind in columns.items() if kind)
    return f"CREATE SCHEMA healthcare; CREATE TABLE healthcare.integrations ({lines});"


def altered(what: str, **changed: str) -> str:
    return table(**changed) + f"ALTER TABLE healthcare.integrations {what};"


STATUSES = "('pending', 'connected', 'disconnected', 'error')"
UPPER = """
CREATE FUNCTION upper_status() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.status := upper(NEW.status); RETURN NEW; END $$;
CREATE TRIGGER upper BEFORE INSERT OR UPDATE ON healthcare.integrations
    FOR EACH ROW EXECUTE FUNCTION upper_status();
"""
REFUSED = {
    "a rule that keeps rows": (
        table() + "CREATE RULE r AS ON DELETE TO healthcare.integrations DO INSTEAD NOTHING;",
        "a rule stands before healthcare.integrations",
    ),
    "a trigger that writes something else": (
        table() + UPPER,
        "a trigger of healthcare.integrations changes what is written: connected, 5511999990000 "
        "became CONNECTED",
    ),
    "a name that has to be quoted": (
        table() + 'ALTER TABLE healthcare.integrations ADD "Name" text NOT NULL;',
        'ALTER COLUMN "Name" DROP NOT NULL',
    ),
    "an enum without our words": (
        f"CREATE TYPE mood AS ENUM {STATUSES};" + table(status="mood NOT NULL"),
        "column status of healthcare.integrations is of type mood, which has no deleting: "
        "ALTER TYPE mood ADD VALUE 'deleting'",
    ),
    "a text for organizations": (
        table(organization_id="text NOT NULL"),
        "ALTER COLUMN organization_id TYPE uuid USING organization_id::uuid",
    ),
    "numbers for ids": (
        table(id="bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
        "column id of healthcare.integrations is generated",
    ),
    "numbers for organizations": (
        table(organization_id="bigint NOT NULL"),
        "organization_id of healthcare.integrations is of type bigint",
    ),
    "a uuid for tokens": (table(webhook_token="uuid"), "ALTER COLUMN webhook_token TYPE text"),
    "short tokens": (
        table(webhook_token="varchar(32)"),
        "webhook_token of healthcare.integrations is of type character varying(32)",
    ),
    "plain json": (table(config="json"), "ALTER COLUMN config TYPE jsonb USING config::jsonb"),
    "another column that is required": (
        table() + "ALTER TABLE healthcare.integrations ADD COLUMN name text NOT NULL;",
        "column name of healthcare.integrations must not be null",
    ),
    "a number that is required": (
        table(whatsapp_number="text NOT NULL"),
        "ALTER COLUMN whatsapp_number DROP NOT NULL",
    ),
    "a generated column": (
        table(enabled="boolean GENERATED ALWAYS AS (status <> 'off') STORED"),
        "column enabled of healthcare.integrations is generated",
    ),
    "missing columns": (
        "CREATE SCHEMA healthcare; CREATE TABLE healthcare.integrations "
        "(id uuid PRIMARY KEY, organization_id uuid NOT NULL, config jsonb);",
        "has no column type, provider, status",
    ),
    "a check of the status": (
        altered(f"ADD CONSTRAINT states CHECK (status IN {STATUSES})"),
        "the constraint states of healthcare.integrations refuses the row",
    ),
    "a domain with a check": (
        f"CREATE DOMAIN mood AS text CHECK (VALUE IN {STATUSES});" + table(status="mood"),
        "mood_check",
    ),
    "a trigger that raises": (
        table() + "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'ask the data team'; END $$;"
        "CREATE TRIGGER no BEFORE DELETE ON healthcare.integrations "
        "FOR EACH ROW EXECUTE FUNCTION no();",
        "refuses the row: ask the data team",
    ),
    "a trigger that swallows": (
        table() + "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON healthcare.integrations "
        "FOR EACH ROW EXECUTE FUNCTION no();",
        "lets the row disappear",
    ),
    "a foreign key on the provider": (
        "CREATE TABLE providers (name text PRIMARY KEY);"
        + altered("ADD CONSTRAINT known FOREIGN KEY (provider) REFERENCES providers"),
        "the foreign key known of healthcare.integrations refuses the row",
    ),
    "a view": (
        "CREATE SCHEMA healthcare; CREATE VIEW healthcare.integrations AS SELECT 1 AS id;",
        "healthcare.integrations is a view",
    ),
    "a partitioned table": (
        table(id="uuid NOT NULL")[:-1] + " PARTITION BY HASH (id);",
        "healthcare.integrations is a partitioned table",
    ),
}
SERVED = {
    # Each of these is served, so they are asked together as far as one table can have them.
    "an enum with our words, a domain over uuid, times that whoever writes must give": (
        "CREATE TYPE mood AS ENUM ('pending', 'connected', 'disconnected', 'deleting', 'error');"
        "CREATE DOMAIN org AS uuid;"
        + table(
            status="mood NOT NULL DEFAULT 'pending'",
            organization_id="org NOT NULL",
            created_at="timestamptz NOT NULL",
            updated_at="timestamptz NOT NULL",
        )
    ),
    "enums all over, times without a zone": (
        "CREATE TYPE mood AS ENUM ('pending', 'connected', 'disconnected', 'deleting');"
        "CREATE TYPE kind AS ENUM ('whatsapp', 'email'); CREATE TYPE maker AS ENUM ('evolution');"
        + table(
            status="mood NOT NULL",
            type="kind NOT NULL",
            provider="maker NOT NULL",
            created_at="timestamp NOT NULL",
            updated_at="timestamp NOT NULL",
        )
    ),
    "texts that are just long enough, a check that lets us in, a deferred foreign key": (
        "CREATE TABLE organizations (id uuid PRIMARY KEY);"
        f"INSERT INTO organizations VALUES ('{KNOWN}');"
        + altered(
            "ADD CHECK (status IN ('pending', 'connected', 'disconnected', 'deleting')), "
            "ADD FOREIGN KEY (organization_id) REFERENCES organizations "
            "DEFERRABLE INITIALLY DEFERRED",
            status="varchar(12) NOT NULL",
            type="varchar(8)",
            webhook_token="varchar(64) NOT NULL",
        )
    ),
}
NOTHING = (
    "DROP SCHEMA IF EXISTS healthcare CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
)


@pytest.fixture
async def empty(servers: Servers) -> AsyncIterator[str]:
    """The URL of a database that nobody has migrated."""
    name = f"empty_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(servers.postgres)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield servers.database(name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def pool(empty: str) -> AsyncIterator[Pool]:
    pool = await open_pool(empty)
    yield pool
    pool.terminate()


@pytest.fixture
def settings(settings: Settings, empty: str) -> Settings:
    return settings.model_copy(update={"database_url": empty})


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def tables(pool: Pool) -> int:
    return int(
        await pool.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace::text = 'evosaga'")
    )


async def test_what_can_not_be_served_is_told_and_nothing_is_changed(
    pool: Pool, empty: str, subtests: pytest.Subtests
) -> None:
    for what, (script, sentence) in REFUSED.items():
        with subtests.test(what):
            await pool.execute(NOTHING)
            await pool.execute(script)
            before = await pool.fetchval("SELECT count(*) FROM pg_attribute")
            with pytest.raises(Unfit) as refusal:
                await migrations.migrate(empty)
            assert sentence in str(refusal.value)
            assert len(str(refusal.value).splitlines()) == 1
            assert await pool.fetchval("SELECT count(*) FROM pg_attribute") == before


async def test_migrate_tells_what_can_not_be_served_in_one_line(
    pool: Pool, evosaga: Evosaga
) -> None:
    script, sentence = REFUSED["plain json"]
    await pool.execute(script)
    ran = await evosaga("migrate")
    assert ran.code == 2, ran
    assert ran.err.startswith("evosaga: can't migrate, nothing was changed: ")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("what", sampled(SERVED, keep=list(SERVED)[:1]))
async def test_what_can_be_served_is_served(
    what: str, pool: Pool, settings: Settings, redis: Redis, evolution: SimulatedEvolution
) -> None:
    await pool.execute(SERVED[what])
    assert settings.database_url is not None
    await migrations.migrate(settings.database_url)
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create(organization_id=KNOWN)))
        assert (made.status, made.message) == ("completed", None)
        again = await outcome(pool, await publish(redis, create(organization_id=KNOWN)))
        assert (again.status, again.code) == ("rejected", "integration_exists")
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        assert gone.status == "completed"
    assert evolution.rows() == {}
    assert await pool.fetchval("SELECT count(*) FROM healthcare.integrations") == 0


FOREIGN_KEY = f"""
CREATE TABLE organizations (id uuid PRIMARY KEY); INSERT INTO organizations VALUES ('{KNOWN}');
""" + altered(
    "ADD CONSTRAINT known_organization FOREIGN KEY (organization_id) "
    "REFERENCES organizations ON DELETE CASCADE"
)
PLAIN_UNIQUE = (
    altered("ADD CONSTRAINT one_of_a_kind UNIQUE (organization_id, type, provider)")
    + f"""
INSERT INTO healthcare.integrations (organization_id, type, provider, enabled, status)
VALUES ('{KNOWN}', 'whatsapp', 'evolution', false, 'disconnected');
"""
)


RULES = [
    (FOREIGN_KEY, UNKNOWN, "the foreign key known_organization"),
    (
        FOREIGN_KEY.replace("ON DELETE CASCADE", "DEFERRABLE INITIALLY DEFERRED"),
        UNKNOWN,
        "the foreign key known_organization",
    ),
    (PLAIN_UNIQUE, KNOWN, "the unique constraint one_of_a_kind"),
]


@pytest.mark.parametrize(("script", "unlucky", "rule"), sampled(RULES, keep=RULES[1:]))
async def test_a_row_that_the_table_refuses_is_rejected_at_once_before_evolution_is_asked(
    script: str,
    unlucky: str,
    rule: str,
    pool: Pool,
    settings: Settings,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    await pool.execute(script)
    assert settings.database_url is not None
    await migrations.migrate(settings.database_url)
    # In one batch with others: only the one is refused.
    lucky = KNOWN if unlucky != KNOWN else str(uuid.uuid4())
    ids = [await publish(redis, create(organization_id=it)) for it in (unlucky, lucky)]
    async with running_worker(settings):
        refused, second = [await outcome(pool, id_) for id_ in ids]
        assert second.status == "completed"
        assert (refused.status, refused.code) == ("rejected", row_refusals.REFUSED)
        assert str(refused.message).startswith(rule)
        assert len(evolution.journal.requests("create")) == 1
        gone = await outcome(pool, await publish(redis, delete(str(second.instance_name))))
        assert gone.status == "completed"
    assert evolution.rows() == {}
    assert await dead_letters(redis) == []


async def test_doctor_says_what_does_not_fit_any_more(pool: Pool, evosaga: Evosaga) -> None:
    assert (await evosaga("migrate")).code == 0
    fits = (await evosaga("doctor")).out
    assert "a row of ours fits" in fits
    await pool.execute(f"ALTER TABLE healthcare.integrations ADD CHECK (status IN {STATUSES})")
    ran = await evosaga("doctor")
    assert ran.code == 1
    assert "integrations_status_check of healthcare.integrations refuses the row" in ran.out
    assert "let it allow what evosaga writes: the status pending, connected" in ran.out
