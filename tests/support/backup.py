"""A backup of a test's database, and going back to it: what a restore does, in milliseconds."""

from dataclasses import dataclass
from typing import Final

from evosaga.events.database import Pool

_TABLES: Final = """
SELECT oid::regclass::text AS name FROM pg_class
WHERE relkind = 'r' AND relnamespace IN ('evosaga'::regnamespace, 'healthcare'::regnamespace)
  AND relname <> 'alembic_version'
"""
_POSITION: Final = "pg_get_serial_sequence('evosaga.saga_events', 'position')"


@dataclass(frozen=True)
class Backup:
    """The rows of every table as JSON."""

    rows: dict[str, str]

    @staticmethod
    async def of(pool: Pool) -> "Backup":
        async with pool.acquire() as one, one.transaction(isolation="repeatable_read"):
            names = [row["name"] for row in await one.fetch(_TABLES)]
            return Backup(
                {
                    name: await one.fetchval(
                        f"SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM {name} AS t"
                    )
                    for name in names
                }
            )

    async def restore(self, pool: Pool) -> None:
        """No process may be writing. Positions are given anew, as by a restored sequence."""
        async with pool.acquire() as one, one.transaction():
            await one.execute("SET LOCAL session_replication_role = replica")
            for name, rows in self.rows.items():
                await one.execute(f"DELETE FROM {name}")
                await one.execute(
                    f"INSERT INTO {name} OVERRIDING SYSTEM VALUE"
                    f" SELECT * FROM jsonb_populate_recordset(null::{name}, $1::jsonb)",
                    rows,
                )
            # Nobody of then is left, and nobody should wait for their leases.
            await one.execute("DELETE FROM evosaga.leaders")
            await one.execute("DELETE FROM evosaga.workers")
            newest = "(SELECT coalesce(max(position), 0) + 1 FROM evosaga.saga_events)"
            await one.execute(f"SELECT setval({_POSITION}, {newest}, false)")
