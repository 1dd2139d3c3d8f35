"""Indexes for a million integrations and for a million sagas that wait.

The rows of one Evolution server in pages, so that upkeep goes server by server. And what nobody
drives, by when it is due: revision 0003 dropped the index on ``next_at``, since it changed with
every step; this one has only sagas without an owner, so a step of a saga that is driven leaves it
alone. Where the tables are large ``evosaga.migrations.upgrade`` has built them beforehand.
"""

from alembic import context, op

from evosaga.migrations.search_indexes import SCALE_INDEXES, made

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    whatsapp = context.config.attributes.get("whatsapp", True)
    for index in SCALE_INDEXES:
        if whatsapp or index.schema != "healthcare":
            op.execute(made(index))


def downgrade() -> None:
    for index in SCALE_INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {index.schema}.{index.name}")
