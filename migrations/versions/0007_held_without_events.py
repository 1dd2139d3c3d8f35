"""What is held again writes no event, and no time is believed that lies too far ahead.

``held_claim`` is the sequence of the event that a row of holds rests on, ``holds`` how many there
were in the row, ``doubted_at`` when the newest of them may have had its effect. ``scheduled_at`` is
when ``next_at`` was set, and ``lease_seconds`` how long a worker asks to be believed alive: where
they lie ahead of the clock, the clock was put back.
"""

from alembic import op

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE evosaga.sagas ADD COLUMN held_claim integer, ADD COLUMN holds integer,"
        " ADD COLUMN doubted_at timestamptz, ADD COLUMN scheduled_at timestamptz"
    )
    op.execute("ALTER TABLE evosaga.workers ADD COLUMN lease_seconds double precision")


def downgrade() -> None:
    op.execute(
        "ALTER TABLE evosaga.sagas DROP COLUMN held_claim, DROP COLUMN holds,"
        " DROP COLUMN doubted_at, DROP COLUMN scheduled_at"
    )
    op.execute("ALTER TABLE evosaga.workers DROP COLUMN lease_seconds")
