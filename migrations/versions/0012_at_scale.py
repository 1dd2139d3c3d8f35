"""A million integrations, and a million sagas that wait.

``integrations_by_server``: the rows of one Evolution server in pages, so that upkeep goes server by
server. ``connections_alerted``: the phones that somebody was told of. ``due_at`` and
``waits_since``: the ``next_at`` and ``scheduled_at`` of an active saga that no worker drives, else
NULL. A sweep finds by them what is due. They are columns of their own since Postgres leaves the
indexes of a row alone only while no indexed column changes: ``next_at`` changes with every step
(revision 0003), and these only when a saga is let go or taken. A trigger keeps them, since workers
of the release before do not know them.

``evosaga.migrations.upgrade`` has made and filled the columns and built the indexes beforehand:
here is only done what is missing, since even an ALTER that changes nothing locks the table.
"""

from alembic import context, op

from evosaga.migrations import waiting_sagas
from evosaga.migrations.search_indexes import SCALE_INDEXES, made

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    whatsapp = context.config.attributes.get("whatsapp", True)
    if not op.get_bind().exec_driver_sql(waiting_sagas.IS_KEPT).scalar():
        for statement in waiting_sagas.KEPT:
            op.execute(statement)
    op.execute(waiting_sagas.FILLED)
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
