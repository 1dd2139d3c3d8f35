"""What is held again writes no event, and no time is believed that lies too far ahead.

``held_claim`` is the sequence of the event that a row of holds rests on, ``holds`` how many there
were in the row, ``doubted_at`` when the newest of them may have had its effect. ``scheduled_at`` is
when ``next_at`` was set, and ``lease_seconds`` how long a worker asks to be believed alive: where
they lie ahead of the clock, the clock was put back. ``refused`` keeps the ids of rejected sagas
that are no longer kept themselves.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


# Of a rejected saga that is no longer kept: what tells a repeated command from another one.
REFUSED = """
CREATE TABLE evosaga.refused (
    saga_id      uuid        PRIMARY KEY,
    command_hash text        NOT NULL,
    archived_at  timestamptz NOT NULL DEFAULT now()
)
"""


def upgrade() -> None:
    op.execute(REFUSED)
    op.execute(
        "ALTER TABLE evosaga.sagas ADD COLUMN held_claim integer, ADD COLUMN holds integer,"
        " ADD COLUMN doubted_at timestamptz, ADD COLUMN scheduled_at timestamptz"
    )
    op.execute("ALTER TABLE evosaga.workers ADD COLUMN lease_seconds double precision")


def downgrade() -> None:
    op.execute("DROP TABLE evosaga.refused")
    op.execute(
        "ALTER TABLE evosaga.sagas DROP COLUMN held_claim, DROP COLUMN holds,"
        " DROP COLUMN doubted_at, DROP COLUMN scheduled_at"
    )
    op.execute("ALTER TABLE evosaga.workers DROP COLUMN lease_seconds")
