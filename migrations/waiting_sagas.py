"""``due_at`` and ``waits_since`` of sagas that no worker drives: the columns of revision 0012.

Everything here may be done again: ``evosaga.migrations.upgrade`` does it before the transaction of
the migration, which would lock the table for as long as it fills a million rows, and the revision
does what is left.
"""

import asyncio
from typing import Any, Final

COLUMNS: Final = """
ALTER TABLE evosaga.sagas ADD COLUMN IF NOT EXISTS due_at timestamptz,
    ADD COLUMN IF NOT EXISTS waits_since timestamptz
"""
_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION evosaga.note_waiting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.owner IS NULL AND NEW.status IN ('running', 'compensating') THEN
        NEW.due_at := NEW.next_at;
        NEW.waits_since := coalesce(NEW.scheduled_at, NEW.updated_at);
    ELSE
        NEW.due_at := NULL;
        NEW.waits_since := NULL;
    END IF;
    RETURN NEW;
END $$
"""
# A step of a saga that a worker drives calls nothing.
_INSERTED: Final = """
CREATE OR REPLACE TRIGGER waiting_inserted BEFORE INSERT ON evosaga.sagas FOR EACH ROW
WHEN (NEW.owner IS NULL AND NEW.status IN ('running', 'compensating'))
EXECUTE FUNCTION evosaga.note_waiting()
"""
_UPDATED: Final = """
CREATE OR REPLACE TRIGGER waiting_updated BEFORE UPDATE ON evosaga.sagas FOR EACH ROW
WHEN (OLD.waits_since IS NOT NULL
      OR (NEW.owner IS NULL AND NEW.status IN ('running', 'compensating')))
EXECUTE FUNCTION evosaga.note_waiting()
"""
KEPT: Final = (COLUMNS, _FUNCTION, _INSERTED, _UPDATED)
"""The statements that make the columns and what keeps them."""
IS_KEPT: Final = """
SELECT count(*) = 2 FROM pg_trigger
WHERE tgrelid = 'evosaga.sagas'::regclass AND tgname IN ('waiting_inserted', 'waiting_updated')
"""
"""Whether these were made. To make them again would lock the table, though it changes nothing."""
_NOT_FILLED: Final = (
    "status IN ('running', 'compensating') AND owner IS NULL AND waits_since IS NULL"
)
FILLED: Final = f"UPDATE evosaga.sagas SET due_at = next_at WHERE {_NOT_FILLED}"  # noqa: S608
"""The trigger fills both, ``waits_since`` always; ``due_at`` stays NULL where ``next_at`` is."""

_PATIENCE: Final = "5s"
"""Whoever comes after a session that waits for the table waits behind it."""
_LOOK: Final = 100_000
"""Rows that are looked for at a time, since each look may read the whole table."""
_BATCH: Final = 5_000
"""Rows that one transaction fills."""
_TRIES: Final = 20
"""Looks one after the other that fill none of what they find, since others hold it."""
_PAUSE: Final = 0.1

_FOUND: Final = f"SELECT saga_id FROM evosaga.sagas WHERE {_NOT_FILLED} LIMIT {_LOOK}"  # noqa: S608
_FILL: Final = f"""
WITH filled AS (
    UPDATE evosaga.sagas SET due_at = next_at
    WHERE saga_id IN (
        SELECT saga_id FROM evosaga.sagas WHERE saga_id = ANY($1::uuid[]) AND {_NOT_FILLED}
        FOR UPDATE SKIP LOCKED)
    RETURNING 1)
SELECT count(*) FROM filled
"""  # noqa: S608  # constants only


async def prepare(connection: Any, revision: str) -> None:
    """Make and fill the columns of a database of that revision, where the table is."""
    if revision < "0006":  # which added what the trigger reads; the migration does it all
        await connection.execute(f"SET lock_timeout = '{_PATIENCE}'; {COLUMNS}")
        await connection.execute("RESET lock_timeout")
        return
    await keep(connection)
    await fill(connection)


async def keep(connection: Any) -> None:
    """Make the columns and their triggers, in a short transaction of their own."""
    if await connection.fetchval(IS_KEPT):
        return
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
        for statement in KEPT:
            await connection.execute(statement)


async def fill(connection: Any) -> None:
    """Fill the rows that wait already, a batch a transaction.

    What a worker holds all the while is left to the migration itself.
    """
    idle = 0
    while idle < _TRIES and (found := await _not_filled(connection)):
        filled = 0
        for at in range(0, len(found), _BATCH):
            filled += await connection.fetchval(_FILL, found[at : at + _BATCH])
        idle = 0 if filled else idle + 1
        if not filled:
            await asyncio.sleep(_PAUSE)


async def _not_filled(connection: Any) -> list[Any]:
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        return [row[0] for row in await connection.fetch(_FOUND)]
