"""The epoch of the stream of events, and whether the log was found to have gone back.

``epoch`` counts how often operators have begun anew after the log lost its end. ``went_back_at`` is
set while nobody has decided yet what is to become of what was lost (``evosaga recover``).
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE evosaga.relay ADD COLUMN epoch integer NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE evosaga.relay ADD COLUMN went_back_at timestamptz")
    op.execute("ALTER TABLE evosaga.relay ADD COLUMN went_back jsonb")


def downgrade() -> None:
    for column in ("went_back", "went_back_at", "epoch"):
        op.execute(f"ALTER TABLE evosaga.relay DROP COLUMN {column}")
