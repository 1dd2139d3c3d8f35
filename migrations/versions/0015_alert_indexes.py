"""Indexes for what the leader of the alerts asks each second: what has to be announced.

Resolved alerts stay for 30 days; without these each look reads all of them. Those that are open
have ``one_open_alert_a_key``.
"""

from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None

INDEXES = {
    "alerts_unannounced": "(id) WHERE announced_at IS NULL",
    "alerts_unannounced_resolutions": "(id) WHERE resolved_at IS NOT NULL"
    " AND announced_at IS NOT NULL AND resolution_announced_at IS NULL",
}


def upgrade() -> None:
    for name, made in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON evosaga.alerts {made}")


def downgrade() -> None:
    for name in INDEXES:
        op.execute(f"DROP INDEX evosaga.{name}")
