"""A migrated database for each test, made once and emptied in between.

To make one and to drop it costs more than what most tests do with it. So a database that was only
written to is emptied, and gets another name: whoever of the last test still has the old one finds
nothing there. One whose schema or rights a test changed is left alone, and the next test gets a
copy of the template: to drop it takes a checkpoint, and all of them go with the server.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from evosaga import migrations

TEMPLATE: Final = "evosaga_template"
NEEDLESS: Final = ("fsync", "full_page_writes", "autovacuum")
"""What the suite's own Postgres goes without. Nobody pulls the plug of the machine, and tests that
kill a Postgres have one of their own. No database lives long enough to be vacuumed; with so many of
them one would be at every moment.
"""

# Runs for every CREATE, ALTER, DROP, GRANT … and not for a TRUNCATE.
_NOTE_CHANGES: Final = """
CREATE SCHEMA suite;
CREATE TABLE suite.changes (tag text);
CREATE FUNCTION suite.note() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog AS
    $$ BEGIN INSERT INTO suite.changes VALUES (tg_tag); END $$;
"""
_BEGIN_NOTING: Final = "CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION suite.note()"
_TABLES: Final = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind = 'r' AND relnamespace IN (
    SELECT oid FROM pg_namespace
    WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'suite'))
"""
# A TRUNCATE makes a file for the table and each of its indexes, twenty times what it costs to
# delete the few rows that most tests leave. What a deletion leaves behind counts as size.
_BEGIN_EMPTYING: Final = """
CREATE FUNCTION suite.empty(one regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pg_relation_size(one) > 262144 THEN
        EXECUTE format('TRUNCATE %s', one);
    ELSIF pg_relation_size(one) > 0 THEN
        EXECUTE format('DELETE FROM %s', one);
    END IF;
END $$;
"""
_SEQUENCES: Final = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind = 'S' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'suite'::regnamespace)
"""


@dataclass
class Databases:
    """What tests of one process take their databases from."""

    postgres: str
    admin: asyncpg.Connection
    empty: str
    spares: list[str] = field(default_factory=list)

    def url(self, name: str) -> str:
        return another(self.postgres, name)

    async def take(self) -> str:
        """The name of a database as the migrations leave it."""
        name = f"test_{uuid.uuid4().hex}"
        while self.spares:
            try:
                await self.admin.execute(f"ALTER DATABASE {self.spares.pop()} RENAME TO {name}")
            except asyncpg.ObjectInUseError:  # a process that a failed test left behind came back
                continue
            connection = await asyncpg.connect(self.url(name))
            try:
                if not await connection.fetchval("SELECT EXISTS (SELECT FROM suite.changes)"):
                    await connection.execute(self.empty)
                    return name
            finally:
                await connection.close()
            name = f"test_{uuid.uuid4().hex}"
        await self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    async def give_back(self, name: str) -> None:
        """Throw out whoever is left in it, and keep it for a test that finds it unchanged."""
        await self.admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", name
        )
        self.spares.append(name)


def another(postgres: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlsplit(postgres)._replace(path=f"/{name}").geturl()


async def databases(postgres: str) -> Databases:
    """Make the template."""
    admin = await asyncpg.connect(postgres)
    # What a server was started with takes precedence; one in a container is told here.
    for setting in NEEDLESS:
        await admin.execute(f"ALTER SYSTEM SET {setting} = off")
    await admin.execute("SELECT pg_reload_conf()")
    await admin.execute(f"CREATE DATABASE {TEMPLATE}")
    url = another(postgres, TEMPLATE)
    await migrations.migrate(url)
    connection = await asyncpg.connect(url)
    await connection.execute(_NOTE_CHANGES)
    await connection.execute(_BEGIN_EMPTYING)
    tables = [row[0] for row in await connection.fetch(_TABLES)]
    steps = ["SET session_replication_role = replica"]  # history refuses to be emptied
    steps += [f"SELECT suite.empty('{table}')" for table in tables]
    for row in await connection.fetch(_SEQUENCES):
        steps.append(f"SELECT setval('{row[0]}', 1, false)")
    for number, table in enumerate(tables):  # what the migrations themselves put there
        if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            await connection.execute(f"CREATE TABLE suite.kept_{number} AS TABLE {table}")
            steps.append(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE suite.kept_{number}")
    await connection.execute(_BEGIN_NOTING)
    await connection.close()
    return Databases(postgres, admin, "; ".join(steps))
