"""What every verb says about a Postgres that can't be used as it is."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from evosaga.orchestrator.config.settings import Settings
from tests.conftest import Servers
from tests.support.commandline import Evosaga, commandline

DOUBLED = "4e8ddba1-ad52-4613-9a03-ec64636b3f6c"
TWO_ROWS = f"""
CREATE SCHEMA healthcare;
CREATE TABLE healthcare.integrations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id uuid NOT NULL,
    type text NOT NULL, provider text NOT NULL, status text NOT NULL DEFAULT 'pending',
    enabled boolean NOT NULL DEFAULT true, config jsonb NOT NULL DEFAULT '{{}}');
INSERT INTO healthcare.integrations (organization_id, type, provider)
SELECT '{DOUBLED}', 'whatsapp', 'evolution' FROM generate_series(1, 2)
"""


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


@pytest.fixture
async def admin(servers: Servers) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    admin = await asyncpg.connect(servers.postgres)
    yield admin
    await admin.close()


@pytest.fixture
async def made(
    admin: "asyncpg.Connection[asyncpg.Record]", servers: Servers
) -> AsyncIterator[tuple[str, str]]:
    """The name of a database that a test may make, and its URL."""
    name = f"odd_{uuid.uuid4().hex}"
    yield name, servers.database(name)
    await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def asking(url: str | None, query: str) -> str:
    return f"{url}{'&' if '?' in str(url) else '?'}{query}"


async def test_the_parameters_of_other_tools_do_no_harm(
    evosaga: Evosaga, settings: Settings
) -> None:
    """They are taken off in one place, so each verb is asked once and each of them once."""
    for verb, query in (
        ("migrate", "pgbouncer=true&connection_limit=1"),
        ("list", "schema=public&connect_timeout=10"),
        ("doctor", "supa=x"),
    ):
        ran = await evosaga.having(database_url=asking(settings.database_url, query))(verb)
        assert ran.code == 0, (verb, query, ran)


async def test_a_parameter_that_postgres_does_not_take_is_named(
    evosaga: Evosaga, settings: Settings
) -> None:
    for verb, query, name in (
        ("migrate", "no_such_thing=1", "no_such_thing"),
        ("list", "statement_timeout=soon", "statement_timeout"),
        ("worker", "options=-c%20no_such_thing%3D1", "no_such_thing"),
        ("list", "options=project%3Dx", "options"),
        ("list", "role=nobody_at_all", "role"),
    ):
        ran = await evosaga.having(database_url=asking(settings.database_url, query))(verb)
        assert ran.code == 2, (verb, ran)
        assert f"does not take the parameter {name} of EVOSAGA_DATABASE_URL" in ran.err
        assert len(ran.err.splitlines()) == 1


async def test_what_the_driver_can_not_do_is_told_as_it_is(
    evosaga: Evosaga, settings: Settings
) -> None:
    for url, sentence in (
        (asking(settings.database_url, "sslmode=prefer&sslnegotiation=direct"), "needs sslmode="),
        (f"postgresql://me@{'a' * 300}:1/db", "names a host that none can be called"),
        ("postgresql://me@nowhere.invalid/db", "(its name is not known)"),
    ):
        ran = await evosaga.having(database_url=url)("list")
        assert ran.code in (2, 3)
        assert sentence in ran.err
        assert len(ran.err.splitlines()) == 1


async def test_a_server_that_is_not_what_the_url_asks_for_is_told(
    evosaga: Evosaga, settings: Settings
) -> None:
    url = asking(settings.database_url, "target_session_attrs=standby")
    ran = await evosaga.having(database_url=url)("list")
    assert ran.code == 3
    assert "not what target_session_attrs asks for" in ran.err


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_another_encoding_is_refused_by_name(
    encoding: str,
    admin: "asyncpg.Connection[asyncpg.Record]",
    made: tuple[str, str],
    evosaga: Evosaga,
) -> None:
    name, url = made
    await admin.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    )
    ran = await evosaga.having(database_url=url)("migrate")
    assert ran.code == 2
    assert f"has the encoding {encoding}, evosaga needs UTF8: make another" in ran.err


async def test_a_database_that_takes_nothing_is_told_by_migrate_and_by_every_start(
    admin: "asyncpg.Connection[asyncpg.Record]", made: tuple[str, str], evosaga: Evosaga
) -> None:
    name, url = made
    await admin.execute(f"CREATE DATABASE {name}")
    there = evosaga.having(database_url=url)
    cure = f"default_transaction_read_only is on: ALTER DATABASE {name} RESET"
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    ran = await there("migrate")
    assert (ran.code, cure in ran.err) == (2, True), ran
    await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert (await there("migrate")).code == 0
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    for verb, code in (("worker", 2), ("doctor", 1)):
        ran = await there(verb)
        assert ran.code == code, ran
        said = " ".join((ran.out + ran.err).split())
        assert "default_transaction_read_only is on" in said


async def test_several_enabled_rows_of_an_organization_are_named_with_one_cure(
    admin: "asyncpg.Connection[asyncpg.Record]", made: tuple[str, str], evosaga: Evosaga
) -> None:
    name, url = made
    await admin.execute(f"CREATE DATABASE {name}")
    connection = await asyncpg.connect(url)
    await connection.execute(TWO_ROWS)
    await connection.close()
    ran = await evosaga.having(database_url=url)("migrate")
    assert ran.code == 2
    assert ran.err == (
        "evosaga: can't migrate: these organizations have several enabled integrations: "
        f"{DOUBLED}. Keep one of each (delete or disable the others), then migrate.\n"
    )


class TestARole:
    @pytest.fixture
    async def role(
        self, admin: "asyncpg.Connection[asyncpg.Record]", made: tuple[str, str]
    ) -> AsyncIterator[str]:
        role = f"app_{uuid.uuid4().hex[:8]}"
        await admin.execute(f"CREATE ROLE {role} LOGIN")
        await admin.execute(f"CREATE DATABASE {made[0]}")
        yield role
        await admin.execute(f"DROP DATABASE {made[0]} WITH (FORCE)")
        await admin.execute(f"DROP ROLE {role}")

    async def test_without_the_right_to_make_schemas_needs_none_where_they_are_there(
        self, role: str, made: tuple[str, str], evosaga: Evosaga
    ) -> None:
        name, url = made
        there = evosaga.having(database_url=url.replace("postgres@", f"{role}@"))
        ran = await there("migrate")
        assert ran.code == 2
        assert f"permission denied for database {name}" in ran.err
        assert f"GRANT CREATE ON DATABASE {name} TO {role}" in ran.err
        connection = await asyncpg.connect(url)
        await connection.execute(
            f"CREATE SCHEMA evosaga AUTHORIZATION {role};"
            f"CREATE SCHEMA healthcare AUTHORIZATION {role}"
        )
        await connection.close()
        assert (await there("migrate")).code == 0
        assert (await there("migrate")).out.startswith("the schema is up to date")

    async def test_that_does_not_own_the_table_is_told_whose_it_is(
        self, role: str, made: tuple[str, str], evosaga: Evosaga
    ) -> None:
        name, url = made
        connection = await asyncpg.connect(url)
        await connection.execute(
            f"GRANT CREATE ON DATABASE {name} TO {role}; CREATE SCHEMA healthcare;"
            f"GRANT USAGE, CREATE ON SCHEMA healthcare TO {role};"
            "CREATE TABLE healthcare.integrations (id uuid PRIMARY KEY, organization_id uuid, "
            "type text, provider text, status text)"
        )
        await connection.close()
        there = evosaga.having(database_url=url.replace("postgres@", f"{role}@"))
        ran = await there("migrate")
        assert ran.code == 2
        assert "healthcare.integrations belongs to postgres" in ran.err
        assert f"ALTER TABLE healthcare.integrations OWNER TO {role}" in ran.err
