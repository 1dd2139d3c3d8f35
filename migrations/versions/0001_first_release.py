"""The event log, its projection and the integrations table.

Written as SQL: what matters here (triggers, partial indexes, a function) has no other spelling.
``healthcare.integrations`` may exist already, since the system this replaces made it; it is
taken over as it is and only what is missing is added.
"""

from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Serialises appends until their commit, so that the order of positions is the order of commits:
# a reader that has seen position n has seen everything below n.
APPEND_LOCK = 0x65766F5341474100

LOG = f"""
CREATE TABLE evosaga.saga_events (
    saga_id         uuid        NOT NULL,
    sequence        integer     NOT NULL CHECK (sequence >= 0),
    position        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE,
    type            text        NOT NULL,
    data            jsonb       NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    correlation_id  text        NOT NULL,
    causation_id    text,
    PRIMARY KEY (saga_id, sequence)
);

CREATE FUNCTION evosaga.append_in_commit_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever stops while holding the lock must not stop the others; set here and for this
    -- transaction only, since a pooler would carry a session's settings to somebody else.
    PERFORM set_config('idle_in_transaction_session_timeout', '5000', true),
            set_config('lock_timeout', '10000', true);
    PERFORM pg_advisory_xact_lock({APPEND_LOCK});
    RETURN NULL;
END $$;

-- A statement trigger fires before the first position is drawn.
CREATE TRIGGER append_in_commit_order BEFORE INSERT ON evosaga.saga_events
    FOR EACH STATEMENT EXECUTE FUNCTION evosaga.append_in_commit_order();

CREATE FUNCTION evosaga.refuse_to_change_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('evosaga.archiving', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'evosaga.saga_events is append-only: % is refused', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'To archive, SET LOCAL evosaga.archiving = ''on'' and DELETE.';
END $$;

CREATE TRIGGER history_is_never_changed BEFORE UPDATE OR DELETE ON evosaga.saga_events
    FOR EACH ROW EXECUTE FUNCTION evosaga.refuse_to_change_history();
CREATE TRIGGER history_is_never_truncated BEFORE TRUNCATE ON evosaga.saga_events
    FOR EACH STATEMENT EXECUTE FUNCTION evosaga.refuse_to_change_history();
"""

PROJECTION = """
CREATE TABLE evosaga.sagas (
    saga_id           uuid        PRIMARY KEY,
    saga              text        NOT NULL,
    version           integer     NOT NULL,
    status            text        NOT NULL CONSTRAINT sagas_status CHECK (status IN
        ('running', 'compensating', 'completed', 'compensated', 'failed', 'rejected')),
    business_key      text        NOT NULL,
    organization_id   uuid,
    instance_name     text,
    command_id        text        NOT NULL,
    command_hash      text        NOT NULL,
    step              text,
    direction         text,
    attempt           integer,
    code              text,
    message           text,
    existing_instance text,
    correlation_id    text        NOT NULL,
    causation_id      text,
    next_sequence     integer     NOT NULL,
    next_at           timestamptz,
    owner             text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX one_open_saga_a_business_key ON evosaga.sagas (business_key)
    WHERE status IN ('running', 'compensating', 'failed');
CREATE UNIQUE INDEX one_open_saga_an_instance ON evosaga.sagas (instance_name)
    WHERE status IN ('running', 'compensating', 'failed') AND instance_name IS NOT NULL;
CREATE INDEX sagas_due ON evosaga.sagas (next_at) WHERE status IN ('running', 'compensating');
CREATE INDEX sagas_owned ON evosaga.sagas (owner) WHERE status IN ('running', 'compensating');
CREATE INDEX sagas_newest ON evosaga.sagas (created_at DESC, saga_id DESC);
CREATE INDEX sagas_by_status ON evosaga.sagas (status, created_at DESC, saga_id DESC);
CREATE INDEX sagas_by_organization
    ON evosaga.sagas (organization_id, created_at DESC, saga_id DESC);
CREATE INDEX sagas_by_instance ON evosaga.sagas (instance_name, created_at DESC, saga_id DESC);

CREATE TABLE evosaga.workers (
    worker_id   text        PRIMARY KEY,
    started_at  timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE evosaga.relay (
    stream      text   PRIMARY KEY,
    position    bigint NOT NULL DEFAULT 0,
    leader      text,
    lease_until timestamptz
);
INSERT INTO evosaga.relay (stream) VALUES ('evosaga:events');
"""

INTEGRATIONS = """
-- Asked first, since IF NOT EXISTS wants the right to make one even where nothing is to be made.
DO $$ BEGIN
IF to_regnamespace('healthcare') IS NULL THEN CREATE SCHEMA healthcare; END IF;
IF to_regclass('healthcare.integrations') IS NOT NULL THEN RETURN; END IF;
CREATE TABLE healthcare.integrations (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid        NOT NULL,
    type            text        NOT NULL DEFAULT 'whatsapp',
    provider        text        NOT NULL DEFAULT 'evolution',
    status          text        NOT NULL DEFAULT 'pending',
    enabled         boolean     NOT NULL DEFAULT true,
    config          jsonb       NOT NULL DEFAULT '{}'::jsonb,
    webhook_token   text,
    whatsapp_number text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE healthcare.integrations IS 'made by evosaga';
END $$;
ALTER TABLE healthcare.integrations
    ADD COLUMN IF NOT EXISTS enabled boolean NOT NULL DEFAULT true,
    ADD COLUMN IF NOT EXISTS config jsonb NOT NULL DEFAULT '{}'::jsonb,
    ADD COLUMN IF NOT EXISTS webhook_token text,
    ADD COLUMN IF NOT EXISTS whatsapp_number text,
    ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();

DO $$
DECLARE doubled text;
BEGIN
    SELECT string_agg(organization_id::text, ', ') INTO doubled FROM (
        SELECT organization_id FROM healthcare.integrations
        WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled
        GROUP BY organization_id, type, provider HAVING count(*) > 1
    ) AS several;
    IF doubled IS NOT NULL THEN
        RAISE EXCEPTION 'these organizations have several enabled integrations: %', doubled
            USING HINT = 'Keep one of each (delete or disable the others), then migrate.';
    END IF;
END $$;
CREATE UNIQUE INDEX IF NOT EXISTS one_enabled_integration_an_organization
    ON healthcare.integrations (organization_id, type, provider)
    WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled;
CREATE INDEX IF NOT EXISTS integrations_by_instance
    ON healthcare.integrations ((config ->> 'instance_name'));
"""

# The old RPC looked first and wrote later. This one lets the unique index decide, and never
# points an organization's row at another instance: that is how instances were orphaned.
SAVE_RPC = """
DROP FUNCTION IF EXISTS healthcare.save_evolution_integration(uuid, text, text, text);
CREATE FUNCTION healthcare.save_evolution_integration(
    p_organization_id uuid,
    p_instance_name   text,
    p_phone_number    text DEFAULT NULL,
    p_webhook_url     text DEFAULT NULL
) RETURNS json LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    saved healthcare.integrations;
    taken text;
    details jsonb := jsonb_strip_nulls(jsonb_build_object(
        'instance_name', p_instance_name, 'webhook_url', p_webhook_url));
BEGIN
    IF coalesce(p_instance_name, '') = '' THEN
        RAISE EXCEPTION 'p_instance_name must name the instance'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO healthcare.integrations AS kept
        (organization_id, type, provider, status, enabled, config, webhook_token, whatsapp_number)
    VALUES (p_organization_id, 'whatsapp', 'evolution',
        CASE WHEN p_phone_number IS NULL THEN 'pending' ELSE 'connected' END, true, details,
        replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), p_phone_number)
    ON CONFLICT (organization_id, type, provider) WHERE enabled DO UPDATE SET
        status = CASE WHEN p_phone_number IS NULL THEN kept.status ELSE 'connected' END,
        config = kept.config || excluded.config,
        whatsapp_number = coalesce(p_phone_number, kept.whatsapp_number),
        webhook_token = coalesce(kept.webhook_token, excluded.webhook_token),
        updated_at = now()
    WHERE kept.config ->> 'instance_name' = p_instance_name
    RETURNING * INTO saved;
    IF saved.id IS NULL THEN
        SELECT config ->> 'instance_name' INTO taken FROM healthcare.integrations
        WHERE organization_id = p_organization_id AND type = 'whatsapp'
          AND provider = 'evolution' AND enabled;
        RAISE EXCEPTION 'WhatsApp integration already exists for this organization: %', taken
            USING ERRCODE = 'unique_violation',
                  HINT = 'Delete the existing integration before creating a new one.';
    END IF;
    RETURN row_to_json(saved);
END $$;
REVOKE ALL ON FUNCTION healthcare.save_evolution_integration(uuid, text, text, text) FROM PUBLIC;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'service_role') THEN
        GRANT EXECUTE ON FUNCTION
            healthcare.save_evolution_integration(uuid, text, text, text) TO service_role;
    END IF;
END $$;
"""


def upgrade() -> None:
    for part in (LOG, PROJECTION):
        _execute(part)
    if context.config.attributes.get("whatsapp", True):
        for part in (INTEGRATIONS, SAVE_RPC):
            _execute(part)


def downgrade() -> None:
    """Takes our own schema away. The integrations belong to the people and stay."""
    _execute(
        "DROP FUNCTION healthcare.save_evolution_integration(uuid, text, text, text);"
        "DROP TABLE evosaga.relay, evosaga.workers, evosaga.sagas, evosaga.saga_events;"
        "DROP FUNCTION evosaga.append_in_commit_order(), evosaga.refuse_to_change_history();"
    )


def _execute(script: str) -> None:
    """Several statements at once, which only the driver's own ``execute`` can do."""
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.run_async(lambda driver: driver.execute(script))
