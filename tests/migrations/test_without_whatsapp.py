"""A database of those who run no WhatsApp, one that gets it later, and tables of a domain's own."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from evosaga import migrations
from tests.conftest import Servers

REVISION = """
from alembic import op

revision = "{revision}"
down_revision = {down}
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("{sql}")
"""


@pytest.fixture
async def empty(servers: Servers) -> AsyncIterator[str]:
    """The URL of a database that nobody has migrated."""
    name = f"plain_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(servers.postgres)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield servers.database(name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def asked(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_without_whatsapp_there_is_no_schema_healthcare_until_it_is_wanted(
    empty: str,
) -> None:
    schema = "SELECT to_regnamespace('healthcare') IS NOT NULL"
    revision = "SELECT version_num FROM evosaga.alembic_version"
    for _ in range(2):
        assert await migrations.migrate(empty, whatsapp=False) == []
        assert not await asked(empty, schema)
        assert await asked(empty, revision) == migrations.head()

    await migrations.migrate(empty)
    assert await asked(empty, schema)
    row = "INSERT INTO healthcare.integrations (organization_id) VALUES (gen_random_uuid())"
    await asked(empty, f"{row} RETURNING id")
    save = "SELECT healthcare.save_evolution_integration(gen_random_uuid(), 'sol')"
    assert "webhook_token" in await asked(empty, save)

    await migrations.migrate(empty, whatsapp=False)  # switched off: what is there stays
    assert await asked(empty, "SELECT count(*) FROM healthcare.integrations") == 2


async def test_a_table_of_that_name_is_left_alone_by_those_who_run_no_whatsapp(empty: str) -> None:
    await asked(empty, "CREATE SCHEMA healthcare")
    await asked(empty, "CREATE TABLE healthcare.integrations (whatever text)")
    await migrations.migrate(empty, whatsapp=False)
    columns = (
        "SELECT string_agg(attname, ',') FROM pg_attribute "
        "WHERE attrelid = 'healthcare.integrations'::regclass AND attnum > 0"
    )
    assert await asked(empty, columns) == "whatever"


async def test_a_domain_brings_revisions_of_its_own(empty: str, tmp_path: Path) -> None:
    one = REVISION.format(revision="a1", down=None, sql="CREATE TABLE rooms (number int)")
    (tmp_path / "a1_rooms.py").write_text(one)
    own = {"hotel": tmp_path}
    await migrations.migrate(empty, whatsapp=False, domains=own)
    await migrations.migrate(empty, whatsapp=False, domains=own)
    assert await asked(empty, "SELECT to_regclass('rooms') IS NOT NULL")

    more = "ALTER TABLE rooms ADD COLUMN guest text"
    two = REVISION.format(revision="a2", down="'a1'", sql=more)
    (tmp_path / "a2_guests.py").write_text(two)
    await migrations.migrate(empty, whatsapp=False, domains=own)
    assert await asked(empty, "SELECT version_num FROM evosaga.alembic_version_hotel") == "a2"
    assert await asked(empty, "SELECT count(guest) FROM rooms") == 0
    # Uninstalled, it is in nobody's way.
    await migrations.migrate(empty, whatsapp=False)


async def test_without_whatsapp_a_schema_of_somebody_elses_needs_no_right_to_look(
    empty: str, servers: Servers
) -> None:
    role, name = f"migrator_{uuid.uuid4().hex}", await asked(empty, "SELECT current_database()")
    owner = await asyncpg.connect(empty)
    try:
        await owner.execute(
            f"CREATE SCHEMA healthcare; CREATE TABLE healthcare.integrations (id int);"
            f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE {name} TO {role}"
        )
        theirs = empty.replace("postgres@", f"{role}:x@")
        for _ in range(2):
            assert await migrations.migrate(theirs, whatsapp=False) == []
        assert await asked(theirs, "SELECT version_num FROM evosaga.alembic_version")
    finally:
        await owner.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
        await owner.close()
