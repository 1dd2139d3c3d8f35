"""Sagas by the id of their command, where that is not the saga's own.

Ids that come with an organization's key count within that organization, so an operator can't work
out the saga's id from them.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE INDEX sagas_by_command ON evosaga.sagas (command_id)"
        " WHERE command_id <> saga_id::text"
    )


def downgrade() -> None:
    op.execute("DROP INDEX evosaga.sagas_by_command")
