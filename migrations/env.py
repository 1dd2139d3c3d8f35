"""Alembic's entry: run on the connection handed over, or on EVOSAGA_DATABASE_URL."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, text

from evosaga.events.schema import metadata
from evosaga.migrations import migrate
from evosaga.migrations.revision import LOCK, SCHEMA


def _run(connection: Connection) -> None:
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    # IF NOT EXISTS needs the right to create even where nothing has to be created.
    if connection.execute(text(f"SELECT to_regnamespace('{SCHEMA}')")).scalar() is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_schemas=True,
        include_name=lambda name, type_, _: type_ != "schema" or name in (SCHEMA, "healthcare"),
        version_table_schema=SCHEMA,
        version_table=context.config.attributes.get("version_table", "alembic_version"),
        compare_type=True,
    )
    # A session that waits for a table lock blocks every session that comes after it.
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    with context.begin_transaction():
        context.run_migrations()


if (handed_over := context.config.attributes.get("connection")) is not None:
    _run(handed_over)
else:
    url = os.environ.get("EVOSAGA_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if not url:
        raise SystemExit("set EVOSAGA_DATABASE_URL, or use `evosaga migrate`")
    asyncio.run(migrate(url))
