"""Sessions of the dashboard that were signed out, so that a copy of the cookie opens nothing.

Only a hash is kept, and only until the session would have ended by itself.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE evosaga.ended_sessions (
            session bytea       PRIMARY KEY,
            until   timestamptz NOT NULL
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE evosaga.ended_sessions")
