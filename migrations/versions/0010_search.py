"""Indexes for one search over integrations and sagas, and for sorted pages of integrations.

Where the tables are large ``evosaga.migrations.upgrade`` has built them beforehand, while everybody
went on writing; here they are made where they are missing.
"""

from alembic import op

from evosaga.migrations.search_indexes import INDEXES

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for index in INDEXES:
        op.execute(f"CREATE INDEX IF NOT EXISTS {index.name} {index.made}".replace(":", r"\:"))


def downgrade() -> None:
    for index in INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {index.schema}.{index.name}")
