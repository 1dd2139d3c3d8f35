"""Alembic migrations, configured in pyproject.toml and run by ``evosaga migrate``."""

from typing import TYPE_CHECKING

import asyncpg

from evosaga.migrations.revision import SchemaOutdated, current, head, newer, require_current

if TYPE_CHECKING:
    from evosaga.sagas.whatsapp.table_fit import Misfit

__all__ = [
    "SchemaBusy",
    "SchemaOutdated",
    "current",
    "head",
    "migrate",
    "newer",
    "require_current",
]


class SchemaBusy(Exception):
    """A table was locked by another session for too long. Nothing was changed; try again."""


async def migrate(database_url: str, revision: str = "head") -> "list[Misfit]":
    """Bring the database to ``revision``. Safe to run from several processes at once.

    Returns what in the integrations table keeps some rows out. Raises ``SchemaBusy`` when a table
    stays locked, ``Unfit`` and ``ReadOnly`` of ``evosaga.migrations.preflight`` when it is not
    possible, and a migration's own refusal; then nothing is changed.
    """
    # Slow to import, and most callers never migrate.
    from evosaga.migrations.upgrade import upgrade

    try:
        return await upgrade(database_url, revision)
    except asyncpg.LockNotAvailableError as error:
        told = "a transaction of somebody else's has held a table for 5 s"
        raise SchemaBusy(f"{told}; nothing was changed, try again") from error
