"""Indexes for one search over integrations and sagas, and for sorted pages of integrations.

Where the tables are large ``evosaga.migrations.upgrade`` has built them beforehand, while everybody
went on writing; here they are made where they are missing.
"""

from alembic import context, op

from evosaga.migrations.search_indexes import INDEXES, made

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    whatsapp = context.config.attributes.get("whatsapp", True)
    for index in INDEXES:
        if whatsapp or index.schema != "healthcare":
            op.execute(made(index).replace(":", r"\:"))


def downgrade() -> None:
    for index in INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {index.schema}.{index.name}")
