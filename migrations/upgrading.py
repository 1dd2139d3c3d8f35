"""The migration itself: Alembic, on SQLAlchemy's asyncpg dialect.

Apart from the rest, since both take a third of a worker's start and a fifth of its memory, and
only ``evosaga migrate`` needs them.
"""

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


def alembic_config() -> Config:
    """Alembic's settings: where the revisions are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


async def upgrade(database_url: str, revision: str) -> None:
    """Bring the database to ``revision``.

    Raises asyncpg's ``LockNotAvailableError`` when a table is not to be had, and a migration's own
    refusal.
    """
    url = database_url.replace("postgres://", "postgresql://", 1)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(url, statement_cache_size=0),
        poolclass=NullPool,
    )
    config = alembic_config()

    def run(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
            await connection.commit()
    except DBAPIError as error:
        cause = getattr(error.orig, "__cause__", None)
        if isinstance(cause, asyncpg.LockNotAvailableError):
            raise cause from error
        raise
    finally:
        await engine.dispose()
