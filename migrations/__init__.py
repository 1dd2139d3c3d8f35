"""Alembic migrations, configured in pyproject.toml and run by ``evosaga migrate``."""

import asyncio
from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from events.database import Connection

SCHEMA: Final = "evosaga"


class SchemaOutdated(Exception):
    """The database is older or newer than this release: the operator must migrate or upgrade."""


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
    """Bring the database to ``revision``. Safe to run from several processes at once."""
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
    finally:
        await engine.dispose()


async def current(connection: Connection) -> str | None:
    """The revision the database has, None when it was never migrated."""
    if not await connection.fetchval("SELECT to_regclass('evosaga.alembic_version')"):
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM evosaga.alembic_version")
    return found


async def require_current(connection: Connection) -> None:
    """Raise ``SchemaOutdated``, naming the cure, unless the database fits this release."""
    found, needed = await current(connection), await asyncio.to_thread(head)
    if found != needed:
        raise SchemaOutdated(
            f"the database schema is {found or 'missing'}, this release needs {needed}: "
            "run `evosaga migrate`"
        )
