"""Appends may commit in parallel.

``relay.parallel_appends`` says how appends are ordered; it is off until an operator switches it on
(``evosaga appends --parallel``), and ``evosaga.append_in_commit_order`` reads it for each append.
``relay.term`` counts the leases of the relay that were taken: a release that does not count them
reads "above my cursor" without regard to appends that are under way, so it gets no lease while
appends are parallel. ``workers.features`` says what else a worker's release can do.
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

APPEND_LOCK = 0x65766F5341474100
"""As in the first revision."""
FLOOR = 0x6566 << 48
"""Advisory locks whose upper 16 bits are these have a position in the lower 48."""

# A position that is drawn later is above every one that was drawn or committed before. The role of
# an older release may not read the sequence.
APPEND = f"""
CREATE OR REPLACE FUNCTION evosaga.append_in_commit_order() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    parallel boolean;
BEGIN
    -- Whoever stops in an append must not stop the others; set here and for this transaction only,
    -- since a pooler would carry a session's settings to somebody else.
    PERFORM set_config('idle_in_transaction_session_timeout', '5000', true),
            set_config('lock_timeout', '10000', true);
    SELECT parallel_appends INTO parallel FROM evosaga.relay WHERE stream = 'evosaga:events';
    -- An older snapshot may show what is over; the exclusive lock is right in both modes.
    IF parallel AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM pg_advisory_xact_lock_shared({APPEND_LOCK});
        SELECT parallel_appends INTO parallel FROM evosaga.relay WHERE stream = 'evosaga:events';
        IF NOT parallel THEN
            RAISE EXCEPTION 'the order of appends was switched at this moment: try again'
                USING ERRCODE = 'serialization_failure';
        END IF;
        -- The relay publishes nothing above this position until the transaction is over.
        PERFORM pg_advisory_xact_lock_shared({FLOOR} + coalesce(
            CASE WHEN has_sequence_privilege('evosaga.saga_events_position_seq', 'USAGE, SELECT')
                 THEN pg_sequence_last_value('evosaga.saga_events_position_seq')
                 ELSE (SELECT max(position) FROM evosaga.saga_events) END, 0));
    ELSE
        PERFORM pg_advisory_xact_lock({APPEND_LOCK});
    END IF;
    RETURN NULL;
END $$
"""  # noqa: S608  # constants only
REFUSE = """
CREATE FUNCTION evosaga.refuse_older_relays() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
    RETURN NULL;  -- the row stays as it is, which an older release takes for another's lease
END $$
"""
TRIGGER = """
CREATE TRIGGER older_relays_do_not_lead BEFORE UPDATE ON evosaga.relay FOR EACH ROW
WHEN (NEW.parallel_appends AND NEW.leader IS NOT NULL
      AND NEW.leader IS DISTINCT FROM OLD.leader AND NEW.term = OLD.term)
EXECUTE FUNCTION evosaga.refuse_older_relays()
"""
BEFORE = f"""
CREATE OR REPLACE FUNCTION evosaga.append_in_commit_order() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '5000', true),
            set_config('lock_timeout', '10000', true);
    PERFORM pg_advisory_xact_lock({APPEND_LOCK});
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute(
        "ALTER TABLE evosaga.relay ADD COLUMN parallel_appends boolean NOT NULL DEFAULT false,"
        " ADD COLUMN term bigint NOT NULL DEFAULT 0"
    )
    op.execute("ALTER TABLE evosaga.workers ADD COLUMN features text[] NOT NULL DEFAULT '{}'")
    for statement in (APPEND, REFUSE, TRIGGER):
        _execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER older_relays_do_not_lead ON evosaga.relay")
    op.execute("DROP FUNCTION evosaga.refuse_older_relays")
    _execute(BEFORE)
    op.execute("ALTER TABLE evosaga.workers DROP COLUMN features")
    op.execute("ALTER TABLE evosaga.relay DROP COLUMN parallel_appends, DROP COLUMN term")


def _execute(statement: str) -> None:
    """As it is: Alembic would take a colon for a parameter."""
    op.get_bind().exec_driver_sql(statement)
