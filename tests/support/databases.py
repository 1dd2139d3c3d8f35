"""A migrated database for each test, made once and emptied in between.

To make one and to drop it costs more than what most tests do with it. So a database that was only
written to is emptied. Where something of the last test was still connected it gets another name as
well, under which whoever has the old one does not find it. One whose schema or rights a test
changed is left alone, and the next test gets a copy of the template: to drop it takes a checkpoint,
and all of them go with the server.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import asyncpg
import pytest

from evosaga import migrations
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.postgres import SETTINGS, local_postgres
from tests.support.kept_connections import KeptConnections

TEMPLATE: Final = "evosaga_template"
NEEDLESS: Final = ("fsync", "full_page_writes", "autovacuum")
"""What the suite's own Postgres goes without. Nobody pulls the plug of the machine, and tests that
kill a Postgres have one of their own. No database lives long enough to be vacuumed; with so many of
them one would be at every moment.
"""


@contextlib.contextmanager
def brief_postgres() -> Iterator[LocalServer]:
    """A Postgres of a test's own, which may kill it and start it again.

    It does not wait for the disk, which a kill of its processes does not need, and is killed at the
    end, since an orderly end writes all of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "fsync", "off")
        with local_postgres() as server:
            yield server
            server.kill()


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
_THROW_OUT: Final = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1"
)
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
    inside: dict[str, asyncpg.Connection] = field(default_factory=dict)
    """A connection to each, which empties it."""
    kept: KeptConnections = field(default_factory=KeptConnections)

    def url(self, name: str) -> str:
        return another(self.postgres, name)

    async def take(self) -> str:
        """The name of a database as the migrations leave it."""
        while self.spares:
            name = self.spares.pop()
            if not await self._changed(name):
                await self.inside[name].execute(self.empty)
                return name
            self._leave(name)
        name = _new_name()
        await self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        await self._enter(name)
        return name

    async def give_back(self, name: str) -> None:
        """Throw out whoever is left in it, and keep it for a test that finds it unchanged."""
        ours = [self.inside[name].get_server_pid(), *self.kept.pids(self.url(name))]
        left = await self.admin.fetchval(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE datname = $1 AND pid <> ALL ($2)",
            name,
            ours,
        )
        if left:
            self._leave(name)
            await self.admin.execute(_THROW_OUT, name)
            old, name = name, _new_name()
            try:
                await self.admin.execute(f"ALTER DATABASE {old} RENAME TO {name}")
            except asyncpg.ObjectInUseError:  # a process that a failed test left behind came back
                return
            await self._enter(name)
        self.spares.append(name)

    async def close(self) -> None:
        for name in list(self.inside):
            self._leave(name)
        await self.admin.close()

    async def _changed(self, name: str) -> bool:
        """Whether its schema or rights are no longer those of the template."""
        asked = "SELECT EXISTS (SELECT FROM suite.changes)"
        try:
            return bool(await self.inside[name].fetchval(asked))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # a test ended it
            self._leave(name)
            await self._enter(name)
            return bool(await self.inside[name].fetchval(asked))

    async def _enter(self, name: str) -> None:
        self.inside[name] = await asyncpg.connect(self.url(name))
        self.kept.serves(self.url(name))

    def _leave(self, name: str) -> None:
        self.kept.end(self.url(name))
        self.inside.pop(name).terminate()


def _new_name() -> str:
    return f"test_{uuid.uuid4().hex}"


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
