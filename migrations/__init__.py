"""Alembic migrations, configured in pyproject.toml and run by ``evosaga migrate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import structlog

from evosaga.events.database import Connection

if TYPE_CHECKING:
    from evosaga.sagas.whatsapp.table_fit import Misfit

SCHEMA: Final = "evosaga"
LOCK: Final = 0x65766F5341474101
"""One migration at a time, whoever starts them: of a transaction, so a pooler can't leak it."""
_VERSIONS: Final = Path(__file__).parent / "versions"
_logger = structlog.get_logger("evosaga.migrations")


class SchemaOutdated(Exception):
    """The database is older than this release: the operator must migrate it."""


class SchemaBusy(Exception):
    """Somebody has held a table for too long. Nobody's fault; nothing was changed, try again."""


def head() -> str:
    """The revision this release needs: the last of its files, which are numbered."""
    return max(path.stem for path in _VERSIONS.glob("[0-9]*.py")).partition("_")[0]


async def migrate(database_url: str, revision: str = "head") -> "list[Misfit]":
    """Bring the database to ``revision``. Safe to run from several processes at once.

    What of the integrations table keeps out some rows is the answer. Raises ``SchemaBusy`` when a
    table is not to be had, ``Unfit`` and ``ReadOnly`` of ``evosaga.migrations.preflight`` where it
    can't be done, and a migration's own refusal; nothing is changed then.
    """
    from evosaga.migrations.upgrade import (
        upgrade,  # slow, and most who look at the schema never migrate
    )

    try:
        return await upgrade(database_url, revision)
    except asyncpg.LockNotAvailableError as error:
        told = "a transaction of somebody else's has held a table for 5 s"
        raise SchemaBusy(f"{told}; nothing was changed, try again") from error


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
    found, needed = await current(connection), head()
    if newer(found, needed):
        # A newer release has migrated already, and only adds: a worker of this one that restarts
        # while the others are replaced goes on, as those that were running do.
        _logger.warning("the schema is a newer release's", schema=found, known=needed)
    elif found != needed:
        raise SchemaOutdated(
            f"the database schema is {found or 'missing'}, this release needs {needed}: "
            "run `evosaga migrate`"
        )
