"""Migrations: from nothing, from the old system's table, twice at once, and back."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from redis.asyncio import Redis
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from evosaga import migrations
from evosaga.events.database import Pool, open_pool
from evosaga.events.schema import metadata
from evosaga.migrations.search_indexes import INDEXES, SCALE_INDEXES
from evosaga.migrations.upgrade import alembic_config
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.engine.state import OPEN
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.queries.sagas import find_saga
from evosaga.orchestrator.whatsapp.webhooks.authentication import Presented, WebhookAuthenticator
from evosaga.sagas.whatsapp.ownership import KeyRing, stored
from tests.conftest import SECRET, Servers
from tests.support.commandline import Evosaga
from tests.support.driving import create, delete, outcome, publish
from tests.support.waiting import eventually

OLD_TABLE = """
CREATE SCHEMA healthcare;
CREATE TABLE healthcare.integrations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL,
    type varchar(50) NOT NULL,
    provider varchar(50) NOT NULL,
    status text NOT NULL DEFAULT 'pending',
    config jsonb NOT NULL DEFAULT '{}',
    legacy_note text
);
CREATE FUNCTION healthcare.save_evolution_integration(
    p_organization_id uuid, p_instance_name text, p_phone_number text, p_webhook_url text
) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"old": true}'::jsonb $$;
"""
ROW = "INSERT INTO healthcare.integrations (organization_id, type, provider, config, legacy_note) "


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
async def database(empty: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(empty)
    yield connection
    await connection.close()


async def on(url: str, work: Any) -> Any:
    """Run synchronous Alembic work on a connection, and commit."""
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool
    )
    async with engine.begin() as connection:
        answer = await connection.run_sync(work)
    await engine.dispose()
    return answer


def downgrade(connection: Connection, revision: str = "base") -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def drift(connection: Connection) -> list[Any]:
    def ours(name: str | None, type_: str, _: Any) -> bool:
        if type_ == "index":  # these are expressions, which only Postgres itself compares
            return name not in {index.name for index in (*INDEXES, SCALE_INDEXES[0])}
        return type_ != "schema" or name in ("evosaga", "healthcare")

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": ours,
            "version_table_schema": "evosaga",
            "compare_type": True,
            "compare_server_default": True,
        },
    )
    return list(compare_metadata(context, metadata))


def test_the_revision_that_is_needed_is_the_one_that_alembic_ends_at() -> None:
    assert migrations.head() == ScriptDirectory.from_config(alembic_config()).get_current_head()


async def test_an_unmigrated_database_names_the_cure(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    with pytest.raises(migrations.SchemaOutdated, match=r"missing.*evosaga migrate"):
        await migrations.require_current(database)
    await migrations.migrate(empty)
    await migrations.require_current(database)
    await database.execute("UPDATE evosaga.alembic_version SET version_num = '0000'")
    with pytest.raises(migrations.SchemaOutdated, match=r"0000.*evosaga migrate"):
        await migrations.require_current(database)


async def test_a_worker_that_restarts_after_a_newer_release_has_migrated_goes_on(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await migrations.migrate(empty)
    await database.execute("UPDATE evosaga.alembic_version SET version_num = '9999'")
    await migrations.require_current(database)


@pytest.mark.fault("e14")
async def test_a_migration_gives_way_to_whoever_holds_a_table(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await migrations.migrate(empty, "0002")
    async with database.transaction():
        await database.execute("LOCK TABLE evosaga.sagas IN ACCESS SHARE MODE")
        with pytest.raises(migrations.SchemaBusy, match="try again"):
            await migrations.migrate(empty)
    await migrations.migrate(empty)


async def test_migrating_in_two_places_at_once_and_once_more_changes_nothing(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    evosaga = Evosaga(tmp_path).having(database_url=empty)
    places = await asyncio.gather(evosaga("migrate"), evosaga("migrate"))
    assert [place.code for place in places] == [0, 0], places
    await database.execute(
        "INSERT INTO healthcare.integrations (organization_id) VALUES (gen_random_uuid())"
    )
    await migrations.migrate(empty)
    assert await migrations.current(database) == migrations.head()
    assert await database.fetchval("SELECT count(*) FROM healthcare.integrations") == 1
    assert await database.fetchval("SELECT count(*) FROM evosaga.relay") == 1


async def test_the_tables_are_what_the_code_says(database_url: str) -> None:
    assert await on(database_url, drift) == []


async def test_the_old_systems_table_is_taken_over_with_its_rows(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await database.execute(OLD_TABLE)
    organization = uuid.uuid4()
    await database.execute(
        ROW + "VALUES ($1, 'whatsapp', 'evolution', '{\"instance_name\": \"old\"}', 'keep me'), "
        "($1, 'email', 'smtp', '{}', NULL)",
        organization,
    )
    before = await database.fetch("SELECT * FROM healthcare.integrations ORDER BY type")
    await migrations.migrate(empty)
    after = await database.fetch("SELECT * FROM healthcare.integrations ORDER BY type")
    assert [{k: row[k] for k in dict(before[0])} for row in after] == [dict(r) for r in before]
    assert all(row["enabled"] and row["webhook_token"] is None for row in after)
    assert all(row["created_at"] and row["updated_at"] for row in after)

    saved = await database.fetchval(
        "SELECT healthcare.save_evolution_integration($1, 'old', '5511')", organization
    )
    assert '"old"' in saved
    assert (
        await database.fetchval(
            "SELECT whatsapp_number FROM healthcare.integrations WHERE type = 'whatsapp'"
        )
        == "5511"
    )


async def test_doubled_integrations_are_named_and_nothing_is_changed_until_one_is_kept(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await database.execute(OLD_TABLE)
    organization = uuid.uuid4()
    for _ in range(2):
        await database.execute(
            ROW + "VALUES ($1, 'whatsapp', 'evolution', '{}', NULL)", organization
        )
    with pytest.raises(asyncpg.RaiseError, match=str(organization)) as error:
        await migrations.migrate(empty)
    assert "disable the others" in str(error.value.hint)
    assert await database.fetchval("SELECT to_regclass('evosaga.saga_events')") is None
    columns = await database.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'integrations'"
    )
    assert "enabled" not in {row["column_name"] for row in columns}
    await database.execute(
        "DELETE FROM healthcare.integrations "
        "WHERE id = (SELECT id FROM healthcare.integrations LIMIT 1)"
    )
    await migrations.migrate(empty)
    await migrations.require_current(database)


async def test_down_and_up_again_keeps_the_integrations(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await migrations.migrate(empty)
    await database.execute("SELECT healthcare.save_evolution_integration(gen_random_uuid(), 'one')")
    await on(empty, downgrade)
    assert await migrations.current(database) is None
    assert await database.fetchval("SELECT to_regclass('evosaga.sagas')") is None
    assert await database.fetchval("SELECT count(*) FROM healthcare.integrations") == 1
    await migrations.migrate(empty)
    await migrations.require_current(database)
    assert await on(empty, drift) == []
    assert await database.fetchval("SELECT count(*) FROM healthcare.integrations") == 1


async def test_the_views_show_what_is_open_and_how_it_began_and_go_with_their_revision(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await migrations.migrate(empty, "0008")
    for status in ("running", "compensating", "completed", "compensated", "failed", "rejected"):
        kind = "saga.rejected" if status == "rejected" else "saga.started"
        data = json.dumps({"instance_name": status, "input": {"a": 1}, "facts": {"b": status}})
        await database.execute(_SAGA, status)
        await database.execute(_EVENT, status, 0, kind, data)
        await database.execute(_EVENT, status, 1, "step.started", data)
    await migrations.migrate(empty)
    rows = await database.fetch("SELECT status FROM evosaga.open_sagas")
    assert {row["status"] for row in rows} == OPEN
    rows = await database.fetch("SELECT instance_name, facts ->> 'b' FROM evosaga.saga_starts")
    assert {tuple(row) for row in rows} == {
        (status, status)
        for status in ("running", "compensating", "completed", "compensated", "failed")
    }
    await on(empty, partial(downgrade, revision="0008"))
    assert await migrations.current(database) == "0008"
    assert await database.fetchval("SELECT to_regclass('evosaga.open_sagas')") is None
    await migrations.migrate(empty)
    await migrations.require_current(database)


_SAGA = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence)
VALUES (md5($1)::uuid, 'trip', 1, $1, $1, $1, 'h', 'c', 2)
"""
_EVENT = """
INSERT INTO evosaga.saga_events (saga_id, sequence, type, data, correlation_id)
VALUES (md5($1)::uuid, $2, $3, $4, 'c')
"""


async def test_no_index_of_sagas_has_a_column_that_every_step_changes(pool: Pool) -> None:
    rows = await pool.fetch(
        "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indexrelid "
        "WHERE indrelid = 'evosaga.sagas'::regclass"
    )
    indexed = {row["attname"] for row in rows}
    assert "status" in indexed
    assert not indexed & {"next_sequence", "step", "attempt", "next_at", "updated_at"}


WIDE = "SELECT indexdef FROM pg_indexes WHERE indexname = 'one_enabled_integration_an_organization'"
NARROW = "WHERE ((type = 'whatsapp'::text) AND (provider = 'evolution'::text) AND enabled)"
AS_0001_HAD_IT = """
DROP INDEX healthcare.one_enabled_integration_an_organization;
CREATE UNIQUE INDEX one_enabled_integration_an_organization
    ON healthcare.integrations (organization_id, type, provider) WHERE enabled;
"""
OTHERS = (
    "INSERT INTO healthcare.integrations (organization_id, type, provider) VALUES "
    "('4e8ddba1-ad52-4613-9a03-ec64636b3f6c', 'email', 'smtp')"
)


@pytest.fixture
async def before_0005(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> "asyncpg.Connection[asyncpg.Record]":
    """A database as the release before left it, with the wide index."""
    await migrations.migrate(empty, "0004")
    await database.execute(AS_0001_HAD_IT)
    await database.execute(OTHERS)
    return database


async def test_the_wide_index_makes_room_for_the_narrow_one(
    empty: str, before_0005: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await before_0005.execute(OTHERS)
    await migrations.migrate(empty)
    assert NARROW in await before_0005.fetchval(WIDE)
    await before_0005.execute(OTHERS)
    ours = "SELECT count(*) FROM pg_indexes WHERE indexname ~ '^one_enabled'"
    assert await before_0005.fetchval(ours) == 1


async def test_an_index_that_a_killed_migration_left_half_built_is_built_anew(
    empty: str, before_0005: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await before_0005.execute(
        "CREATE UNIQUE INDEX one_enabled_whatsapp_an_organization "
        "ON healthcare.integrations (organization_id) WHERE type = 'whatsapp'"
    )
    await before_0005.execute(
        "UPDATE pg_index SET indisvalid = false "
        "WHERE indexrelid = 'healthcare.one_enabled_whatsapp_an_organization'::regclass"
    )
    await migrations.migrate(empty)
    found = await before_0005.fetchval(WIDE)
    assert NARROW in found
    assert "(organization_id, type, provider)" in found


async def test_indexes_of_searches_are_built_beforehand_and_anew_after_a_kill(
    empty: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    valid = "SELECT bool_and(indisvalid) FROM pg_index WHERE indexrelid = $1::text::regclass"
    await migrations.migrate(empty, "0009")
    half = INDEXES[0]
    await database.execute(f"CREATE INDEX {half.name} ON healthcare.integrations (id)")
    await database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{half.schema}.{half.name}'"
        "::regclass"
    )
    await migrations.migrate(empty)
    for index in (*INDEXES, *SCALE_INDEXES):
        assert await database.fetchval(valid, f"{index.schema}.{index.name}"), index.name
    made = "SELECT indexdef FROM pg_indexes WHERE indexname = $1"
    assert "tsvector" in await database.fetchval(made, half.name)


async def test_the_index_is_built_while_others_go_on_writing(
    empty: str, before_0005: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Whoever writes holds the table for as long as his transaction lasts; it waits for him."""
    await before_0005.execute(
        "INSERT INTO healthcare.integrations (organization_id) "
        "SELECT gen_random_uuid() FROM generate_series(1, 5000)"
    )
    writing, stop = 0, asyncio.Event()

    async def write() -> int:
        nonlocal writing
        writer = await asyncpg.connect(empty)
        while not stop.is_set():
            async with asyncio.timeout(3):
                await writer.execute(
                    "INSERT INTO healthcare.integrations (organization_id) "
                    "VALUES (gen_random_uuid())"
                )
            writing += 1
        await writer.close()
        return writing

    task = asyncio.create_task(write())
    await migrations.migrate(empty)
    stop.set()
    assert await task > 0
    rows = await before_0005.fetchval("SELECT count(*) FROM healthcare.integrations")
    assert rows == writing + 5001


async def test_sagas_under_way_go_on_behind_the_migration(
    empty: str,
    before_0005: "asyncpg.Connection[asyncpg.Record]",
    settings: Settings,
    pool: Pool,
    redis: Redis,
    evolution: SimulatedEvolution,
) -> None:
    """What a worker of the release before began, with its token in clear in the row."""
    keys = KeyRing([SECRET])
    evolution.arm("licence", operation="delete", times=None)
    async with running_worker(settings):
        made = await outcome(pool, await publish(redis, create()))
        assert made.status == "completed"
        going = await publish(redis, delete(str(made.instance_name)))

        async def held() -> bool:
            saga = await find_saga(pool, going)
            return saga is not None and saga.status == "running" and saga.step == "evolution"

        await eventually(held)
    for table in ("healthcare.integrations", "evosaga.sagas", "evosaga.saga_events"):
        await copy_as_it_was(pool, before_0005, table)
    await redis.flushall()  # it belongs to the database that these rows come from
    here = settings.model_copy(update={"database_url": empty})
    older = await open_pool(empty)
    token = keys.webhook_token(made.saga_id, keys.current)
    await before_0005.execute(
        "UPDATE healthcare.integrations SET webhook_token = $1 WHERE type = 'whatsapp'", token
    )
    await migrations.migrate(empty)
    kept = await older.fetchval(
        "SELECT webhook_token FROM healthcare.integrations WHERE id = $1", made.saga_id
    )
    assert kept == stored(token)
    only_new = WebhookAuthenticator(
        older, KeyRing(["a-new-secret-key-of-thirty-two-bytes-or-more"])
    )
    name = str(made.instance_name)
    assert await only_new.recognise(name, Presented(token)) == made.saga_id
    assert await only_new.recognise(name, Presented(kept)) is None, "a hash opens nothing"
    evolution.disarm()
    async with running_worker(here):
        assert (await outcome(older, going, 40)).status == "completed"
    assert evolution.rows() == {}
    older.terminate()


async def copy_as_it_was(
    pool: Pool, older: "asyncpg.Connection[asyncpg.Record]", table: str
) -> None:
    """Copy a table into a database of an older release, as far as that has its columns."""
    columns = [
        row["column_name"]
        for row in await older.fetch(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema || '.' || table_name = $1 ORDER BY ordinal_position",
            table,
        )
    ]
    rows = await pool.fetch(f"SELECT {', '.join(columns)} FROM {table}")
    values = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    await older.executemany(
        f"INSERT INTO {table} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE VALUES ({values})",
        [tuple(row) for row in rows],
    )
    if "position" in columns:
        await older.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'position'), max(position)) "
            f"FROM {table}"
        )
