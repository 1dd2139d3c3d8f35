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
"""Advisory lock: one migration at a time. Transaction-scoped, so a pooler cannot leak it."""
_VERSIONS: Final = Path(__file__).parent / "versions"
_logger = structlog.get_logger("evosaga.migrations")


class SchemaOutdated(Exception):
    """The schema is older than this release; the operator must migrate it."""


class SchemaBusy(Exception):
    """A table was locked by another session for too long. Nothing was changed; try again."""


def head() -> str:
    """The revision that this release needs: the last of the numbered files."""
    return max(path.stem for path in _VERSIONS.glob("[0-9]*.py")).partition("_")[0]


async def migrate(database_url: str, revision: str = "head") -> "list[Misfit]":
    """Bring the database to ``revision``. Safe to run from several processes at once.

    Returns what in the integrations table keeps some rows out. Raises ``SchemaBusy`` when a table
    stays locked, ``Unfit`` and ``ReadOnly`` of ``evosaga.migrations.preflight`` when it is not
    possible, and a migration's own refusal; then nothing is changed.
    """
    from evosaga.migrations.upgrade import (
        upgrade,  # slow to import, and most callers never migrate
    )

    try:
        return await upgrade(database_url, revision)
    except asyncpg.LockNotAvailableError as error:
        told = "a transaction of somebody else's has held a table for 5 s"
        raise SchemaBusy(f"{told}; nothing was changed, try again") from error


async def current(connection: Connection) -> str | None:
    """The revision of the database; None when it was never migrated."""
    if not await connection.fetchval("SELECT to_regclass('evosaga.alembic_version')"):
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM evosaga.alembic_version")
    return found


def newer(found: str | None, needed: str) -> bool:
    """Whether the database was migrated by a newer release. Revisions are numbered."""
    return found is not None and found > needed


async def require_current(connection: Connection) -> None:
    """Raise ``SchemaOutdated``, with the cure, when the schema is older than this release."""
    found, needed = await current(connection), head()
    if newer(found, needed):
        # A newer release has migrated already, and migrations only add: a worker of this release
        # that restarts during a rolling update works on, like those that are running.
        _logger.warning("the schema is a newer release's", schema=found, known=needed)
    elif found != needed:
        raise SchemaOutdated(
            f"the database schema is {found or 'missing'}, this release needs {needed}: "
            "run `evosaga migrate`"
        )
