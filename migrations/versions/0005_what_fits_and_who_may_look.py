"""A unique index no wider than it has to be, and an RPC that tells a token once.

The index of 0001 held for an organization's integrations of every type and provider, which are
none of our business. ``evosaga.migrations.upgrade`` builds the narrow one beforehand, while
everybody goes on writing; here the wide one makes room for it. Who may look, and that tokens are
only recognised, is settled after every migration (``evosaga.migrations.grants``).
"""

from alembic import context, op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# What 0001 made on a new database has the name already.
INDEX = """
DO $$
DECLARE wide boolean;
BEGIN
    SELECT pg_get_expr(indpred, indrelid) !~ 'whatsapp' INTO wide FROM pg_index
    WHERE indexrelid = to_regclass('healthcare.one_enabled_integration_an_organization');
    IF wide THEN
        DROP INDEX healthcare.one_enabled_integration_an_organization;
    END IF;
    IF wide IS DISTINCT FROM false THEN
        CREATE UNIQUE INDEX IF NOT EXISTS one_enabled_whatsapp_an_organization
            ON healthcare.integrations (organization_id, type, provider)
            WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled;
        ALTER INDEX healthcare.one_enabled_whatsapp_an_organization
            RENAME TO one_enabled_integration_an_organization;
    END IF;
    DROP INDEX IF EXISTS healthcare.one_enabled_whatsapp_an_organization;
END $$;
"""

# As before, but for the index and the token: that is told once, to whoever makes the row.
SAVE_RPC = """
CREATE OR REPLACE FUNCTION healthcare.save_evolution_integration(
    p_organization_id uuid,
    p_instance_name   text,
    p_phone_number    text DEFAULT NULL,
    p_webhook_url     text DEFAULT NULL
) RETURNS json LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    saved healthcare.integrations;
    taken text;
    -- Of whatever type somebody's column is.
    state healthcare.integrations.status%TYPE :=
        CASE WHEN p_phone_number IS NULL THEN 'pending' ELSE 'connected' END;
    token text := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
    kept_of_it text := 'sha256:' || translate(rtrim(encode(
        sha256(convert_to(token, 'UTF8')), 'base64'), '='), '+/', '-_');
    details jsonb := jsonb_strip_nulls(jsonb_build_object(
        'instance_name', p_instance_name, 'webhook_url', p_webhook_url));
BEGIN
    IF coalesce(p_instance_name, '') = '' THEN
        RAISE EXCEPTION 'p_instance_name must name the instance'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO healthcare.integrations AS kept (organization_id, type, provider, status, enabled,
        config, webhook_token, whatsapp_number, created_at, updated_at)
    VALUES (p_organization_id, 'whatsapp', 'evolution', state, true, details, kept_of_it,
        p_phone_number, now(), now())
    ON CONFLICT (organization_id, type, provider)
        WHERE type = 'whatsapp' AND provider = 'evolution' AND enabled
    DO UPDATE SET
        status = CASE WHEN p_phone_number IS NULL THEN kept.status ELSE state END,
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
    RETURN to_jsonb(saved) || jsonb_build_object('webhook_token',
        CASE WHEN saved.webhook_token = kept_of_it THEN token END);
END $$;
"""


def upgrade() -> None:
    if context.config.attributes.get("whatsapp", True):
        for part in (INDEX, SAVE_RPC):
            _execute(part)


def downgrade() -> None:
    """Nothing: the release before does with less just as well, and a hash can't be taken back."""


def _execute(script: str) -> None:
    """Several statements at once, which only the driver's own ``execute`` can do."""
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.run_async(lambda driver: driver.execute(script))
