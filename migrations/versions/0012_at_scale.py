"""A million integrations, and a million sagas that wait.

``integrations_by_server``: the rows of one Evolution server in pages, so that upkeep goes server by
server. ``connections_alerted``: the phones that somebody was told of. ``due_at`` and
``waits_since``: the ``next_at`` and ``scheduled_at`` of an active saga that no worker drives, else
NULL. A sweep finds by them what is due. They are columns of their own since Postgres leaves the
indexes of a row alone only while no indexed column changes: ``next_at`` changes with every step
(revision 0003), and these only when a saga is let go or taken. A trigger keeps them, since workers
of the release before do not know them.

Where the tables are large ``evosaga.migrations.upgrade`` has made columns and indexes beforehand.
"""

from alembic import context, op

from evosaga.migrations.search_indexes import SCALE_INDEXES, WAITING_COLUMNS, made

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

FUNCTION = """
CREATE FUNCTION evosaga.note_waiting() RETURNS trigger LANGUAGE plpgsql AS $$
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
INSERTED = """
CREATE TRIGGER waiting_inserted BEFORE INSERT ON evosaga.sagas FOR EACH ROW
WHEN (NEW.owner IS NULL AND NEW.status IN ('running', 'compensating'))
EXECUTE FUNCTION evosaga.note_waiting()
"""
UPDATED = """
CREATE TRIGGER waiting_updated BEFORE UPDATE ON evosaga.sagas FOR EACH ROW
WHEN (OLD.waits_since IS NOT NULL
      OR (NEW.owner IS NULL AND NEW.status IN ('running', 'compensating')))
EXECUTE FUNCTION evosaga.note_waiting()
"""
WAITING_NOW = """
UPDATE evosaga.sagas SET due_at = next_at
WHERE status IN ('running', 'compensating') AND owner IS NULL
"""


def upgrade() -> None:
    whatsapp = context.config.attributes.get("whatsapp", True)
    for statement in (WAITING_COLUMNS, FUNCTION, INSERTED, UPDATED, WAITING_NOW):
        op.execute(statement)
    for index in SCALE_INDEXES:
        if whatsapp or index.schema != "healthcare":
            op.execute(made(index))


def downgrade() -> None:
    op.execute("DROP INDEX IF EXISTS healthcare.integrations_by_server")
    op.execute("DROP INDEX IF EXISTS evosaga.connections_alerted")
    for trigger in ("waiting_inserted", "waiting_updated"):
        op.execute(f"DROP TRIGGER {trigger} ON evosaga.sagas")
    op.execute("DROP FUNCTION evosaga.note_waiting")
    op.execute("ALTER TABLE evosaga.sagas DROP COLUMN due_at, DROP COLUMN waits_since")
