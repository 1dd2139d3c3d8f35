"""On which Evolution servers a drift was seen.

While one of several servers can't be looked at, what was seen there is kept and the rest is
forgotten when it is gone. What an older release has noted has none, and is kept that long as well.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE evosaga.sightings ADD COLUMN servers text[]")


def downgrade() -> None:
    op.execute("ALTER TABLE evosaga.sightings DROP COLUMN servers")
