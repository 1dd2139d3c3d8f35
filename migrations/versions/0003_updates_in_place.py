"""Steps that leave a saga's indexes alone.

Every step updates the saga's row. As long as no indexed column changes and the page has room,
Postgres keeps the new version beside the old one and touches no index: ``next_at`` changes with
every step, so it must not be indexed. Nobody seeks by it: the sweep looks at all active sagas.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP INDEX evosaga.sagas_due")
    op.execute("ALTER TABLE evosaga.sagas SET (fillfactor = 60)")


def downgrade() -> None:
    op.execute("ALTER TABLE evosaga.sagas RESET (fillfactor)")
    op.execute(
        "CREATE INDEX sagas_due ON evosaga.sagas (next_at)"
        " WHERE status IN ('running', 'compensating')"
    )
