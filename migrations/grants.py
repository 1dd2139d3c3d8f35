"""Access rights, closed again after every migration.

Supabase grants the roles ``anon`` and ``authenticated`` rights on every new object, and Postgres
lets PUBLIC execute every new function. So those rights are revoked from all of evosaga's objects,
which have row level security and are open only to their owner and to the role ``evosaga_service``.
Nothing is written when nothing is open. Other objects are left unchanged; ``evosaga doctor``
reports what is open there.
"""

from typing import Final

import asyncpg

CLOSE: Final = r"""
DO $closing$
DECLARE
    strangers text := 'PUBLIC' || coalesce((SELECT string_agg(', ' || quote_ident(rolname), '')
        FROM pg_roles WHERE rolname IN ('anon', 'authenticated')), '');
    ids oid[] := 0::oid || ARRAY(SELECT oid FROM pg_roles
        WHERE rolname IN ('anon', 'authenticated'));
    service boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'evosaga_service');
    -- In the catalog: to_regclass raises where a schema of that name is somebody else's.
    theirs oid := (SELECT pg_class.oid FROM pg_class
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = 'healthcare' AND relname = 'integrations');
    mine boolean;
    one record;
BEGIN
    SELECT pg_has_role(relowner, 'USAGE') AND (
        obj_description(oid, 'pg_class') = 'made by evosaga'
        -- Older releases left no note: theirs was made behind evosaga.relay, and is as it was.
        OR (oid > 'evosaga.relay'::regclass AND NOT relrowsecurity AND NOT relhastriggers
            AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid)
            AND (SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
                 WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped)
                = 'id organization_id type provider status enabled config webhook_token '
                  'whatsapp_number created_at updated_at'))
    INTO mine FROM pg_class WHERE oid = theirs;

    FOR one IN SELECT oid::regclass AS name, relrowsecurity, relkind FROM pg_class
        WHERE relkind IN ('r', 'p', 'S', 'v')
          AND (relnamespace = 'evosaga'::regnamespace OR (mine AND oid = theirs))
          AND pg_has_role(relowner, 'USAGE')
          AND (EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee = ANY(ids))
               OR EXISTS (SELECT FROM pg_attribute, aclexplode(attacl)
                          WHERE attrelid = pg_class.oid AND grantee = ANY(ids))
               OR (relkind IN ('r', 'p') AND NOT relrowsecurity))
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s',
            CASE one.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, one.name, strangers);
        IF one.relkind IN ('r', 'p') AND NOT one.relrowsecurity THEN
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', one.name);
        END IF;
    END LOOP;

    FOR one IN SELECT oid::regprocedure AS name, proacl, proconfig FROM pg_proc
        WHERE (pronamespace = 'evosaga'::regnamespace
               OR proname = 'save_evolution_integration' AND pronamespace =
                   (SELECT oid FROM pg_namespace WHERE nspname = 'healthcare')
                   AND oidvectortypes(proargtypes) = 'uuid, text, text, text')
          AND pg_has_role(proowner, 'USAGE')
    LOOP
        IF one.proacl IS NULL
            OR EXISTS (SELECT FROM aclexplode(one.proacl) WHERE grantee = ANY(ids)) THEN
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', one.name, strangers);
        END IF;
        IF NOT coalesce(array_to_string(one.proconfig, ' '), '') ~ 'search_path=' THEN
            EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog', one.name);
        END IF;
    END LOOP;

    IF EXISTS (SELECT FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'evosaga'
               AND grantee = ANY(ids) AND pg_has_role(nspowner, 'USAGE')) THEN
        EXECUTE 'REVOKE ALL ON SCHEMA evosaga FROM ' || strangers;
    END IF;

    IF service THEN
        IF NOT has_database_privilege('evosaga_service', current_database(), 'CONNECT')
            AND (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database
                 WHERE datname = current_database()) THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO evosaga_service', current_database());
        END IF;
        FOR one IN SELECT nspname AS name FROM pg_namespace
            WHERE nspname IN ('evosaga', 'healthcare') AND pg_has_role(nspowner, 'USAGE')
              AND NOT has_schema_privilege('evosaga_service', oid, 'USAGE')
        LOOP
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO evosaga_service', one.name);
        END LOOP;
        FOR one IN SELECT oid, oid::regclass AS name, relrowsecurity, CASE
                -- Of a sequence: how far it got, by which a log that went back is known.
                WHEN relname = 'alembic_version' OR relkind IN ('v', 'S') THEN 'SELECT'
                -- Its trigger lets deletes pass only while archiving.
                WHEN relname = 'saga_events' THEN 'SELECT, INSERT, DELETE'
                ELSE 'SELECT, INSERT, UPDATE, DELETE' END AS rights
            FROM pg_class WHERE pg_has_role(relowner, 'USAGE')
              AND (relnamespace = 'evosaga'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
                   OR oid = theirs AND relkind IN ('r', 'p'))
        LOOP
            IF (SELECT bool_or(NOT has_table_privilege('evosaga_service', one.oid, wanted))
                FROM regexp_split_to_table(one.rights, ', ') AS wanted) THEN
                EXECUTE format('GRANT %s ON %s TO evosaga_service', one.rights, one.name);
            END IF;
            IF one.relrowsecurity AND NOT EXISTS (SELECT FROM pg_policy
                WHERE polrelid = one.oid AND polname = 'evosaga_service') THEN
                EXECUTE format('CREATE POLICY evosaga_service ON %s TO evosaga_service '
                    'USING (true) WITH CHECK (true)', one.name);
            END IF;
        END LOOP;
    END IF;

    -- The RPC works with the rights of whoever calls it.
    IF mine AND EXISTS (SELECT FROM pg_roles WHERE rolname = 'service_role'
                        AND NOT has_table_privilege(oid, theirs, 'DELETE')) THEN
        GRANT USAGE ON SCHEMA healthcare TO service_role;
        GRANT SELECT, INSERT, UPDATE, DELETE ON healthcare.integrations TO service_role;
    END IF;

    -- What Evolution goes on showing is recognised by its hash.
    IF theirs IS NULL
        OR NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = (SELECT relnamespace
            FROM pg_class WHERE oid = theirs)
            AND relname = 'one_enabled_integration_an_organization') THEN
        RETURN;  -- somebody else's, where WhatsApp is not run
    END IF;
    UPDATE healthcare.integrations SET webhook_token = 'sha256:' || translate(rtrim(encode(
        sha256(convert_to(webhook_token, 'UTF8')), 'base64'), '='), '+/', '-_')
    WHERE type = 'whatsapp' AND provider = 'evolution' AND webhook_token <> ''
      AND left(webhook_token, 7) <> 'sha256:';
END $closing$
"""

# What PostgREST's roles or PUBLIC can really reach: the schema needs a grant of its own.
OPEN: Final = """
SELECT format('%s.%s', nspname, relname) AS name, who.rolname AS who, relrowsecurity AS guarded
FROM pg_class JOIN pg_namespace AS place ON place.oid = relnamespace
CROSS JOIN (SELECT rolname::text FROM pg_roles WHERE rolname IN ('anon', 'authenticated')) AS who
WHERE relkind IN ('r', 'p', 'v') AND (nspname = 'evosaga'
    OR (nspname = 'healthcare' AND relname = 'integrations'))
  AND has_schema_privilege(who.rolname, place.oid, 'USAGE')
  AND (has_any_column_privilege(who.rolname, pg_class.oid, 'SELECT')
       OR has_any_column_privilege(who.rolname, pg_class.oid, 'UPDATE')
       OR has_any_column_privilege(who.rolname, pg_class.oid, 'INSERT')
       OR has_table_privilege(who.rolname, pg_class.oid, 'DELETE'))
UNION ALL
SELECT format('%s.%s', nspname, relname), 'PUBLIC', relrowsecurity
FROM pg_class JOIN pg_namespace AS place ON place.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v') AND (nspname = 'evosaga'
    OR (nspname = 'healthcare' AND relname = 'integrations'))
  AND EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee = 0)
  AND EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0)
UNION ALL
SELECT format('%s.%s()', nspname, proname), who.rolname, false
FROM pg_proc JOIN pg_namespace AS place ON place.oid = pronamespace
CROSS JOIN (SELECT rolname::text FROM pg_roles WHERE rolname IN ('anon', 'authenticated')) AS who
WHERE (nspname = 'evosaga' OR (nspname = 'healthcare' AND proname = 'save_evolution_integration'))
  AND has_schema_privilege(who.rolname, place.oid, 'USAGE')
  AND has_function_privilege(who.rolname, pg_proc.oid, 'EXECUTE')
ORDER BY 1, 2
"""

UNGUARDED: Final = """
SELECT format('evosaga.%s', relname) AS name FROM pg_class
WHERE relnamespace = 'evosaga'::regnamespace AND relkind IN ('r', 'p') AND NOT relrowsecurity
ORDER BY 1
"""
IN_CLEAR: Final = """
SELECT count(*) FROM healthcare.integrations
WHERE type = 'whatsapp' AND provider = 'evolution' AND webhook_token <> ''
  AND left(webhook_token, 7) <> 'sha256:'
"""


async def close(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Revoke access to all of evosaga's objects, inside the caller's transaction."""
    await connection.execute(CLOSE)
