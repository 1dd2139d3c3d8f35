"""Alerts, the messages to receivers outside that come of them, and how far each receiver is.

``alerts`` has one open row a key, however many causes there are: that is the grouping. ``fires_at``
is when it is told, unless it is over by then. ``seen_at``: it was true then. ``of_process``: one
process saw it and says so again and again, where the others are found by whoever leads.
``deliveries`` holds what is to be sent, ``receivers`` where in ``evosaga:events`` each one is.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ALERTS = """
CREATE TABLE evosaga.alerts (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key             text        NOT NULL,
    code            text        NOT NULL,
    reason          text,
    severity        text        NOT NULL,
    message         text        NOT NULL,
    cure            text        NOT NULL DEFAULT '',
    count           bigint      NOT NULL DEFAULT 1,
    data            jsonb       NOT NULL DEFAULT '{}',
    of_process      boolean     NOT NULL DEFAULT false,
    opened_at       timestamptz NOT NULL DEFAULT now(),
    seen_at         timestamptz NOT NULL DEFAULT now(),
    fires_at        timestamptz NOT NULL,
    announced_at    timestamptz,
    announced_count bigint,
    resolved_at     timestamptz,
    resolution_announced_at timestamptz
)
"""
DELIVERIES = """
CREATE TABLE evosaga.deliveries (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    receiver     text        NOT NULL,
    message_id   text        NOT NULL,
    type         text        NOT NULL,
    body         text        NOT NULL,
    alert_id     bigint,
    created_at   timestamptz NOT NULL DEFAULT now(),
    next_at      timestamptz NOT NULL DEFAULT now(),
    tries        integer     NOT NULL DEFAULT 0,
    error        text,
    delivered_at timestamptz,
    gave_up_at   timestamptz
)
"""
RECEIVERS = """
CREATE TABLE evosaga.receivers (
    name         text        PRIMARY KEY,
    last_event   text        NOT NULL,
    delivered_at timestamptz,
    updated_at   timestamptz NOT NULL DEFAULT now()
)
"""
INDEXES = (
    "CREATE UNIQUE INDEX one_open_alert_a_key ON evosaga.alerts (key) WHERE resolved_at IS NULL",
    "CREATE UNIQUE INDEX one_delivery_a_message ON evosaga.deliveries (receiver, message_id)",
    "CREATE INDEX deliveries_due ON evosaga.deliveries (receiver, next_at)"
    " WHERE delivered_at IS NULL AND gave_up_at IS NULL",
)


def upgrade() -> None:
    for statement in (ALERTS, DELIVERIES, RECEIVERS, *INDEXES):
        op.execute(statement)


def downgrade() -> None:
    for table in ("receivers", "deliveries", "alerts"):
        op.execute(f"DROP TABLE evosaga.{table}")
