"""Alembic migrations, configured in pyproject.toml and run by ``evosaga migrate``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import asyncpg

from evosaga.migrations.revision import (
    SchemaOutdated,
    current,
    has_whatsapp,
    head,
    newer,
    require_current,
)

if TYPE_CHECKING:
    from evosaga.sagas.whatsapp.table_fit import Misfit

__all__ = [
    "SchemaBusy",
    "SchemaOutdated",
    "current",
    "has_whatsapp",
    "head",
    "migrate",
    "newer",
    "require_current",
]


class SchemaBusy(Exception):
    """A table was locked by another session for too long. Nothing was changed; try again."""


async def migrate(
    database_url: str,
    revision: str = "head",
    *,
    whatsapp: bool = True,
    domains: Mapping[str, Path] = MappingProxyType({}),
) -> "list[Misfit]":
    """Bring the database to ``revision``. Safe to run from several processes at once.

    Not ``whatsapp``: a database that never had it gets no schema ``healthcare``; it does when it is
    migrated with it. ``domains``: folders with Alembic revisions of domains, by name; each has a
    version table of its own, so that one which is uninstalled leaves the others as they are.
    Returns what in the integrations table keeps some rows out. Raises ``SchemaBusy`` when a table
    stays locked, ``Unfit`` and ``ReadOnly`` of ``evosaga.migrations.preflight`` when it is not
    possible, and a migration's own refusal; then nothing is changed.
    """
    # Slow to import, and most callers never migrate.
    from evosaga.migrations.upgrade import upgrade

    try:
        return await upgrade(database_url, revision, whatsapp, domains)
    except asyncpg.LockNotAvailableError as error:
        told = "another transaction has held a table for 5 s"
        raise SchemaBusy(f"{told}; nothing was changed, try again") from error
