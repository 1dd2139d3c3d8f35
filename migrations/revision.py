"""Which revision the database's schema has, and which one this release needs."""

from pathlib import Path
from typing import Final

import structlog

from evosaga.events.database import Connection

SCHEMA: Final = "evosaga"
LOCK: Final = 0x65766F5341474101
"""Advisory lock: one migration at a time. Transaction-scoped, so a pooler cannot leak it."""
_VERSIONS: Final = Path(__file__).parent / "versions"
_logger = structlog.get_logger("evosaga.migrations")


class SchemaOutdated(Exception):
    """The schema is older than this release; the operator must migrate it."""


def head() -> str:
    """The revision that this release needs: the last of the numbered files."""
    return max(path.stem for path in _VERSIONS.glob("[0-9]*.py")).partition("_")[0]


async def current(connection: Connection) -> str | None:
    """The revision of the database; None when it was never migrated."""
    if not await connection.fetchval("SELECT to_regclass('evosaga.alembic_version')"):
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM evosaga.alembic_version")
    return found


async def has_whatsapp(connection: Connection) -> bool:
    """Whether the database was migrated with WhatsApp."""
    return bool(await connection.fetchval(_WHATSAPP))


# In the catalog: ``to_regclass`` raises where a schema of that name is somebody else's.
_WHATSAPP: Final = """
SELECT EXISTS (SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = 'healthcare' AND relname = 'one_enabled_integration_an_organization')
"""


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
