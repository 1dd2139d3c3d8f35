"""Appends may commit in parallel.

``evosaga.appends`` says how appends are ordered: one after another until an operator switches it
(``evosaga appends --parallel``). ``evosaga.append_in_commit_order`` reads it for each append, so it
is in a table of its own: the row of the relay changes all the time, and while a long transaction
keeps its old versions a look at it would cost more and more.

``relay.term`` counts the leases of the relay that were taken: a release that does not count them
publishes everything above its cursor without regard to appends that are under way, so it gets no
lease while appends are parallel. ``workers.features`` says what a worker's release can do.
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

APPENDS = """
CREATE TABLE evosaga.appends (
    log      text    PRIMARY KEY,
    parallel boolean NOT NULL DEFAULT false
)
"""
ONE_LOG = "INSERT INTO evosaga.appends (log) VALUES ('evosaga.saga_events')"

# A position that is drawn later is above every one that was drawn or committed before. The role of
# an older release may not read the sequence.
APPEND = f"""
CREATE OR REPLACE FUNCTION evosaga.append_in_commit_order() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $$
DECLARE
    overlap boolean;
BEGIN
    -- A client that stops in an append must not stop the others; set for this transaction only,
    -- since a pooler would carry a session's settings to somebody else.
    PERFORM set_config('idle_in_transaction_session_timeout', '5000', true),
            set_config('lock_timeout', '10000', true);
    SELECT parallel INTO overlap FROM evosaga.appends WHERE log = 'evosaga.saga_events';
    -- An older snapshot may show what is over; the exclusive lock is right in both modes.
    IF overlap AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM pg_advisory_xact_lock_shared({APPEND_LOCK});
        SELECT parallel INTO overlap FROM evosaga.appends WHERE log = 'evosaga.saga_events';
        IF overlap IS NOT TRUE THEN
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
    IF (SELECT parallel FROM evosaga.appends WHERE log = 'evosaga.saga_events') THEN
        RETURN NULL;  -- the row stays as it is, which an older release takes for another's lease
    END IF;
    RETURN NEW;
END $$
"""
TRIGGER = """
CREATE TRIGGER older_relays_do_not_lead BEFORE UPDATE ON evosaga.relay FOR EACH ROW
WHEN (NEW.leader IS NOT NULL AND NEW.leader IS DISTINCT FROM OLD.leader AND NEW.term = OLD.term)
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
    op.execute("ALTER TABLE evosaga.relay ADD COLUMN term bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE evosaga.workers ADD COLUMN features text[] NOT NULL DEFAULT '{}'")
    for statement in (APPENDS, ONE_LOG, APPEND, REFUSE, TRIGGER):
        _execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER older_relays_do_not_lead ON evosaga.relay")
    op.execute("DROP FUNCTION evosaga.refuse_older_relays")
    _execute(BEFORE)
    op.execute("ALTER TABLE evosaga.workers DROP COLUMN features")
    op.execute("ALTER TABLE evosaga.relay DROP COLUMN term")
    op.execute("DROP TABLE evosaga.appends")


def _execute(statement: str) -> None:
    """As it is: Alembic would take a colon for a parameter."""
    op.get_bind().exec_driver_sql(statement)
