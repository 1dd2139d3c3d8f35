"""Alembic migrations, configured in pyproject.toml and run by ``evosaga migrate``."""

import asyncio
from pathlib import Path
from typing import Final

import asyncpg
import structlog
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from events.database import Connection

SCHEMA: Final = "evosaga"
_logger = structlog.get_logger("evosaga.migrations")


class SchemaOutdated(Exception):
    """The database is older than this release: the operator must migrate it."""


class SchemaBusy(Exception):
    """Somebody has held a table for too long. Nobody's fault; nothing was changed, try again."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def head() -> str:
    """The revision this release needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


async def migrate(database_url: str, revision: str = "head") -> None:
    """Bring the database to ``revision``. Safe to run from several processes at once.

    Raises ``SchemaBusy`` when a table is not to be had, and a migration's own refusal.
    """
    url = database_url.replace("postgres://", "postgresql://", 1)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(url, statement_cache_size=0),
        poolclass=NullPool,
    )
    config = _config()

    def upgrade(connection: SyncConnection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    try:
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
            await connection.commit()
    except DBAPIError as error:
        if isinstance(getattr(error.orig, "__cause__", None), asyncpg.LockNotAvailableError):
            told = "a transaction of somebody else's has held a table for 5 s"
            raise SchemaBusy(f"{told}; nothing was changed, try again") from error
        raise
    finally:
        await engine.dispose()


async def current(connection: Connection) -> str | None:
    """The revision the database has, None when it was never migrated."""
    if not await connection.fetchval("SELECT to_regclass('evosaga.alembic_version')"):
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM evosaga.alembic_version")
    return found


def newer(found: str | None, needed: str) -> bool:
    """Whether a newer release than this one has migrated the database. Revisions are numbered."""
    return found is not None and found > needed


async def require_current(connection: Connection) -> None:
    """Raise ``SchemaOutdated``, naming the cure, when the database is older than this release."""
    found, needed = await current(connection), await asyncio.to_thread(head)
    if newer(found, needed):
        # A newer release has migrated already, and only adds: a worker of this one that restarts
        # while the others are replaced goes on, as those that were running do.
        _logger.warning("the schema is a newer release's", schema=found, known=needed)
    elif found != needed:
        raise SchemaOutdated(
            f"the database schema is {found or 'missing'}, this release needs {needed}: "
            "run `evosaga migrate`"
        )
