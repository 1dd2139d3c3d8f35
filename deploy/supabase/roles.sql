-- The role as which evosaga's api and workers run. Run it as the database's owner (on Supabase:
-- `postgres`), before `evosaga migrate`, which then gives the role what it needs. Safe to repeat.
-- Then give the role a password: \password evosaga_app in psql.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'evosaga_service') THEN
        CREATE ROLE evosaga_service NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'evosaga_app') THEN
        CREATE ROLE evosaga_app LOGIN;
    END IF;
END $$;

GRANT evosaga_service TO evosaga_app;

-- A statement that waits longer than this waits for nothing good.
ALTER ROLE evosaga_app SET statement_timeout = '60s';
ALTER ROLE evosaga_app SET idle_in_transaction_session_timeout = '60s';
