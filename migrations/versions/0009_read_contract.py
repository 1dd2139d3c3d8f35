"""What a domain may read of the engine: the sagas that are not over, and how each of them began.

Two views, so that no query outside the engine knows its list of statuses or where in the log a
beginning is. They are read with the rights of the role that asks, row level security included.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OPEN_SAGAS = """
CREATE VIEW evosaga.open_sagas WITH (security_invoker = true) AS
SELECT saga_id, saga, version, status, business_key, organization_id, instance_name, step,
       direction, attempt, code, message, behind, next_at, created_at, updated_at
FROM evosaga.sagas
WHERE status IN ('running', 'compensating', 'failed')
"""
SAGA_STARTS = """
CREATE VIEW evosaga.saga_starts WITH (security_invoker = true) AS
SELECT saga_id, position, data ->> 'instance_name' AS instance_name, data -> 'input' AS input,
       data -> 'facts' AS facts
FROM evosaga.saga_events
WHERE sequence = 0 AND type = 'saga.started'
"""


def upgrade() -> None:
    op.execute(OPEN_SAGAS)
    op.execute(SAGA_STARTS)


def downgrade() -> None:
    op.execute("DROP VIEW evosaga.saga_starts")
    op.execute("DROP VIEW evosaga.open_sagas")
