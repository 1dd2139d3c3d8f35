"""Sagas that wait behind another, webhooks and notices, and what the housekeeping remembers."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# A saga may wait behind another of the same integration, which keeps the instance's name meanwhile.
BEHIND = """
ALTER TABLE evosaga.sagas ADD COLUMN behind uuid;
DROP INDEX evosaga.one_open_saga_an_instance;
CREATE UNIQUE INDEX one_open_saga_an_instance ON evosaga.sagas (instance_name)
    WHERE status IN ('running', 'compensating', 'failed') AND instance_name IS NOT NULL
      AND behind IS NULL;
"""

# Those that wait form a queue: no two are behind the same saga. All of these are tiny.
QUEUE = """
CREATE UNIQUE INDEX one_saga_behind_another ON evosaga.sagas (behind)
    WHERE status IN ('running', 'compensating', 'failed') AND behind IS NOT NULL;
CREATE INDEX sagas_waiting_by_organization ON evosaga.sagas (organization_id)
    WHERE status IN ('running', 'compensating', 'failed') AND behind IS NOT NULL;
CREATE INDEX sagas_waiting_by_instance ON evosaga.sagas (instance_name)
    WHERE status IN ('running', 'compensating', 'failed') AND behind IS NOT NULL;
"""

# Webhooks are hints, and these columns are all that is kept of one: an allow-list has no place
# for a token or a QR code. ``told_at`` is Evolution's own clock: local time, whatever its Z says.
WEBHOOKS = """
CREATE TABLE evosaga.webhooks (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest         text        NOT NULL UNIQUE,
    integration_id uuid,
    instance_name  text        NOT NULL,
    event          text        NOT NULL,
    state          text,
    reason         integer,
    told_at        timestamp   NOT NULL,
    received_at    timestamptz NOT NULL DEFAULT now(),
    due_at         timestamptz NOT NULL DEFAULT now(),
    tries          integer     NOT NULL DEFAULT 0,
    applied_at     timestamptz
);
CREATE INDEX webhooks_due ON evosaga.webhooks (due_at) WHERE applied_at IS NULL;
CREATE INDEX webhooks_by_age ON evosaga.webhooks (received_at);

CREATE TABLE evosaga.notices (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    integration_id  uuid        NOT NULL,
    organization_id uuid        NOT NULL,
    instance_name   text        NOT NULL,
    type            text        NOT NULL,
    data            jsonb       NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    published_at    timestamptz
);
CREATE INDEX notices_unpublished ON evosaga.notices (id) WHERE published_at IS NULL;
CREATE INDEX notices_by_integration ON evosaga.notices (integration_id, id);

CREATE TABLE evosaga.leaders (
    task        text        PRIMARY KEY,
    leader      text,
    lease_until timestamptz
);
"""

# Which definitions a worker has, as name/version: what none of them knows waits, and says so.
KNOWS = "ALTER TABLE evosaga.workers ADD COLUMN knows text[] NOT NULL DEFAULT '{}';"

# What the housekeeping remembers between two rounds: what looked wrong and since when, how each
# integration's connection is, and who does which chore when.
KEEPING = """
CREATE TABLE evosaga.sightings (
    what            text        NOT NULL,
    instance_name   text        NOT NULL,
    organization_id uuid,
    first_seen      timestamptz NOT NULL DEFAULT now(),
    last_seen       timestamptz NOT NULL DEFAULT now(),
    looks           integer     NOT NULL DEFAULT 1,
    repairs         integer     NOT NULL DEFAULT 0,
    repaired_at     timestamptz,
    PRIMARY KEY (what, instance_name)
);
CREATE TABLE evosaga.connections (
    integration_id    uuid        PRIMARY KEY,
    state             text        NOT NULL,
    since             timestamptz NOT NULL DEFAULT now(),
    reason            integer,
    checked_at        timestamptz,
    looks             integer     NOT NULL DEFAULT 1,
    connected_at      timestamptz,
    reconnects        integer     NOT NULL DEFAULT 0,
    next_reconnect_at timestamptz,
    alerted_at        timestamptz
);
CREATE TABLE evosaga.chores (
    name        text        PRIMARY KEY,
    leader      text,
    lease_until timestamptz,
    next_at     timestamptz NOT NULL DEFAULT now(),
    last_run    timestamptz,
    last_result jsonb
);
"""


def upgrade() -> None:
    for part in (BEHIND, QUEUE, WEBHOOKS, KNOWS, KEEPING):
        _execute(part)


def downgrade() -> None:
    """What waits behind another saga must be over first, or the old index refuses."""
    _execute("ALTER TABLE evosaga.workers DROP COLUMN knows;")
    _execute("DROP TABLE evosaga.leaders, evosaga.notices, evosaga.webhooks;")
    _execute("DROP TABLE evosaga.chores, evosaga.connections, evosaga.sightings;")
    _execute(
        "DROP INDEX evosaga.one_open_saga_an_instance;"
        "ALTER TABLE evosaga.sagas DROP COLUMN behind;"
        "CREATE UNIQUE INDEX one_open_saga_an_instance ON evosaga.sagas (instance_name)"
        " WHERE status IN ('running', 'compensating', 'failed') AND instance_name IS NOT NULL;"
    )


def _execute(script: str) -> None:
    """Several statements at once, which only the driver's own ``execute`` can do."""
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.run_async(lambda driver: driver.execute(script))
