"""A saga may wait behind another one of the same integration, which keeps the name meanwhile."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BEHIND = """
ALTER TABLE evosaga.sagas ADD COLUMN behind uuid;
DROP INDEX evosaga.one_open_saga_an_instance;
CREATE UNIQUE INDEX one_open_saga_an_instance ON evosaga.sagas (instance_name)
    WHERE status IN ('running', 'compensating', 'failed') AND instance_name IS NOT NULL
      AND behind IS NULL;
"""


def upgrade() -> None:
    for part in (BEHIND,):
        _execute(part)


def downgrade() -> None:
    """What waits behind another saga must be over first, or the old index refuses."""
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
