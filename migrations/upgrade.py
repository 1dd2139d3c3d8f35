"""The migration itself: Alembic, on SQLAlchemy's asyncpg dialect.

In a module of its own, since both take a third of a worker's start time and a fifth of its memory,
and only ``evosaga migrate`` needs them. Problems are found before anything is changed or, where
only a trial can show them, before the commit.
"""

import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from evosaga.events.postgres_hosts import connect
from evosaga.events.postgres_url import understood
from evosaga.migrations import grants, preflight, waiting_sagas
from evosaga.migrations.preflight import Unfit
from evosaga.migrations.revision import LOCK, current, has_whatsapp, head
from evosaga.migrations.search_indexes import INDEXES, SCALE_INDEXES, made
from evosaga.sagas.whatsapp.row_dry_run import rehearse
from evosaga.sagas.whatsapp.table_fit import TABLE, Misfit, misfits

_PATIENCE: Final = "30s"
"""How long an index that is built concurrently may wait for other transactions to end."""


def alembic_config() -> Config:
    """Alembic's configuration: where the revisions are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


async def upgrade(
    database_url: str, revision: str, whatsapp: bool, domains: Mapping[str, Path]
) -> list[Misfit]:
    """Bring the database to ``revision``; returns the problems that are not fatal.

    Raises asyncpg's errors, ``Unfit``, ``ReadOnly`` and a migration's own refusal.
    """
    url = understood(database_url)
    if revision == "head":
        whatsapp = await _prepare(url, whatsapp)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(url, statement_cache_size=0),
        poolclass=NullPool,
    )
    config = alembic_config()
    config.attributes["whatsapp"] = whatsapp

    def run(connection: Connection) -> list[Misfit]:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        driver = connection.connection.dbapi_connection
        assert driver is not None
        if revision != "head":
            return []
        for name, folder in domains.items():
            _upgrade_domain(connection, name, folder)
        notes: list[Misfit] = driver.run_async(partial(_settle, whatsapp=whatsapp))
        return notes

    try:
        async with engine.connect() as connection:
            notes = await connection.run_sync(run)
            await connection.commit()
            return notes
    except DBAPIError as error:
        cause = getattr(error.orig, "__cause__", None)
        if isinstance(cause, asyncpg.PostgresError):
            raise cause from error
        raise
    finally:
        await engine.dispose()


def _upgrade_domain(connection: Connection, name: str, folder: Path) -> None:
    """Bring the tables of a domain of its own to its head, in the same transaction."""
    config = alembic_config()
    config.set_main_option("version_locations", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = f"alembic_version_{name}"
    command.upgrade(config, "heads")


async def _settle(driver: Any, *, whatsapp: bool) -> list[Misfit]:
    """Revoke access and try to insert a row, before the commit."""
    if whatsapp and not await has_whatsapp(driver):  # it was migrated without before
        for script in _with_whatsapp():
            await driver.execute(script)
    await grants.close(driver)
    if not whatsapp:
        return []
    found = [*await misfits(driver), *await rehearse(driver)]
    if fatal := [misfit for misfit in found if misfit.fatal]:
        raise Unfit(fatal)
    return found


def _with_whatsapp() -> Iterator[str]:
    """What the revisions make for WhatsApp, in their order; each may be run again."""
    first = importlib.import_module("evosaga.migrations.versions.0001_first_release")
    fifth = importlib.import_module("evosaga.migrations.versions.0005_what_fits_and_who_may_look")
    yield from (first.INTEGRATIONS, first.SAVE_RPC, fifth.INDEX, fifth.SAVE_RPC)
    yield from (made(index) for index in (*INDEXES, *SCALE_INDEXES) if index.schema == "healthcare")


async def _prepare(url: str, whatsapp: bool) -> bool:
    """Check first; then build concurrently the indexes that take long, outside any transaction.

    Returns whether WhatsApp is there or wanted.

    On connections of their own, one of which holds the lock that admits one migration at a time:
    the lock ends with its transaction, so no pooler can leak it, and a concurrent index is not
    blocked by a transaction that only waits.
    """
    lock = await connect(url, statement_cache_size=0)
    try:
        if (refusal := await preflight.read_only(lock)) is not None:
            raise refusal
        found = await preflight.troubles(lock)
        revision = await current(lock)
        there = await has_whatsapp(lock)
        whatsapp = whatsapp or there
        if whatsapp:
            found += await misfits(lock, migrated=False)
        if revision != head() or whatsapp != there:
            found += await preflight.rights(lock, whatsapp=whatsapp)
        if fatal := [misfit for misfit in found if misfit.fatal]:
            raise Unfit(fatal)
        if revision is None or revision >= "0012":
            return whatsapp
        async with lock.transaction():
            # Not as a prepared statement: the index would wait for a portal that stays open.
            await lock.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            builder = await connect(url, statement_cache_size=0)
            try:
                await _build_all(builder, revision, whatsapp)
            finally:
                await builder.close()
        return whatsapp
    finally:
        await lock.close()


async def _build_all(connection: Any, revision: str, whatsapp: bool) -> None:
    """Build what the revisions above this one would lock the tables for."""
    if whatsapp and revision < "0005":
        try:
            await _build(connection, "healthcare", _NARROW, _NARROW_MADE, unique=True)
        except asyncpg.UniqueViolationError:
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS healthcare.{_NARROW}")
            doubled = await connection.fetchval(_DOUBLED)
            said = f"these organizations have several enabled integrations: {doubled}"
            cure = "keep one of each (delete or disable the others), then migrate"
            raise Unfit([Misfit(said, cure)]) from None
    if await connection.fetchval("SELECT to_regclass('evosaga.sagas')"):
        await waiting_sagas.prepare(connection, revision)
    for index in (*INDEXES, *SCALE_INDEXES):
        if index.schema == "healthcare" and not whatsapp:
            continue
        if await connection.fetchval("SELECT to_regclass($1)", index.table):
            await _build(connection, index.schema, index.name, index.made)


async def _build(
    connection: Any, schema: str, name: str, made: str, *, unique: bool = False
) -> None:
    """Build an index unless it exists. A killed process leaves an invalid one."""
    valid = await connection.fetchval(_VALID, f"{schema}.{name}")
    if valid is False:
        await connection.execute(f"DROP INDEX CONCURRENTLY {schema}.{name}")
    if valid:
        return
    kind = "UNIQUE INDEX" if unique else "INDEX"
    # For this statement only: behind a pooler a setting would stay in another client's session.
    await connection.execute(f"SET lock_timeout = '{_PATIENCE}'")
    await connection.execute("SET statement_timeout = 0")
    try:
        await connection.execute(f"CREATE {kind} CONCURRENTLY {name} {made}")
    finally:
        await connection.execute("RESET lock_timeout")
        await connection.execute("RESET statement_timeout")


_NARROW: Final = "one_enabled_whatsapp_an_organization"
_NARROW_MADE: Final = (
    f"ON {TABLE} (organization_id, type, provider) "
    "WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled"
)
_VALID: Final = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
_DOUBLED: Final = f"""
SELECT string_agg(organization_id::text, ', ') FROM (
    SELECT organization_id FROM {TABLE}
    WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled
    GROUP BY organization_id HAVING count(*) > 1) AS several
"""  # noqa: S608  # constants only
