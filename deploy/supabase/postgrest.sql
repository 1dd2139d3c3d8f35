-- What PostgREST shows of healthcare.integrations: to a signed-in user the rows of his organization
-- without the webhook token, to `anon` nothing. Run it as the table's owner after every
-- `evosaga migrate`, which shuts a table that it has made. Safe to repeat.
--
-- The organization comes from the claim `organization_id` of the JSON Web Token. If your tokens
-- carry it elsewhere, as in app_metadata, change the policy.

ALTER TABLE healthcare.integrations ENABLE ROW LEVEL SECURITY;

REVOKE ALL ON healthcare.integrations FROM PUBLIC, anon, authenticated;
REVOKE ALL ON FUNCTION healthcare.save_evolution_integration(uuid, text, text, text)
    FROM PUBLIC, anon, authenticated;

GRANT USAGE ON SCHEMA healthcare TO authenticated;
GRANT SELECT (id, organization_id, type, provider, status, enabled, whatsapp_number, created_at,
              updated_at)
    ON healthcare.integrations TO authenticated;

DROP POLICY IF EXISTS own_organization ON healthcare.integrations;
CREATE POLICY own_organization ON healthcare.integrations FOR SELECT TO authenticated
    USING (organization_id = (nullif(current_setting('request.jwt.claims', true), '')::jsonb
                              ->> 'organization_id')::uuid);

-- The schema of evosaga itself is never in `Exposed schemas`, and shut all the same.
REVOKE ALL ON SCHEMA evosaga FROM PUBLIC, anon, authenticated;
