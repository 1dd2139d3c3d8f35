"""Who may look: Supabase's roles and everybody may not, and a role of least privilege may work."""

import contextlib
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events import log_loss
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.api.server import parts_with_worker
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.maintenance.rejected_sagas import RejectedSagaArchive
from evosaga.sagas.whatsapp.ownership import stored
from tests.api.conftest import API_KEYS, OPERATOR, client_with, served
from tests.conftest import Servers
from tests.support.commandline import Evosaga, commandline
from tests.support.driving import create, delete, outcome, publish
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
STRANGERS = ("anon", "authenticated")
# As Supabase has it for the schemas that it offers, and people for the rest.
GIVEN_AWAY = """
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO anon, authenticated, service_role;
"""
RIGHTS = """
SELECT name, who, what FROM (
    SELECT oid::regclass::text AS name, CASE grantee WHEN 0 THEN 'PUBLIC'
        ELSE pg_get_userbyid(grantee)::text END AS who, privilege_type AS what
    FROM pg_class, aclexplode(relacl) WHERE relkind IN ('r', 'S', 'v', 'p')
      AND relnamespace::regnamespace::text IN ('evosaga', 'healthcare')
    UNION ALL
    SELECT oid::regprocedure::text, CASE grantee WHEN 0 THEN 'PUBLIC'
        ELSE pg_get_userbyid(grantee)::text END, privilege_type
    FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
    WHERE pronamespace::regnamespace::text IN ('evosaga', 'healthcare')
    UNION ALL
    SELECT nspname, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee)::text END,
        privilege_type FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'evosaga'
) AS given WHERE who IN ('PUBLIC', 'anon', 'authenticated')
"""


@pytest.fixture
async def admin(servers: Servers) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    admin = await asyncpg.connect(servers.postgres)
    yield admin
    await admin.close()


@pytest.fixture
async def roles(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Supabase's. They are the cluster's, so other tests of this run have them, too."""
    for role in (*STRANGERS, "service_role", "evosaga_service"):
        with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            await admin.execute(f"CREATE ROLE {role} NOLOGIN")


@pytest.fixture
async def empty(
    servers: Servers, admin: "asyncpg.Connection[asyncpg.Record]"
) -> AsyncIterator[str]:
    name = f"empty_{uuid.uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name}")
    yield servers.database(name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def pool(empty: str) -> AsyncIterator[Pool]:
    pool = await open_pool(empty)
    yield pool
    pool.terminate()


@pytest.fixture
def settings(settings: Settings, empty: str) -> Settings:
    return settings.model_copy(update={"database_url": empty})


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def unguarded(pool: Pool) -> list[str]:
    rows = await pool.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relkind = 'r' "
        "AND NOT relrowsecurity AND relnamespace::regnamespace::text IN ('evosaga', 'healthcare')"
    )
    return [row["name"] for row in rows]


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("begins_at", [None, "0004"])
async def test_whatever_the_database_gives_away_is_taken_back(
    begins_at: str | None, empty: str, pool: Pool, evosaga: Evosaga
) -> None:
    await pool.execute(GIVEN_AWAY)
    if begins_at:
        await migrations.migrate(empty, begins_at)
        await pool.execute("ALTER TABLE healthcare.integrations DISABLE ROW LEVEL SECURITY")
        await pool.execute("COMMENT ON TABLE healthcare.integrations IS NULL")
        assert await pool.fetch(RIGHTS)
    await migrations.migrate(empty)
    assert [tuple(row) for row in await pool.fetch(RIGHTS)] == []
    assert await unguarded(pool) == []
    loose = await pool.fetch(
        "SELECT proname FROM pg_proc "
        "WHERE pronamespace::regnamespace::text IN ('evosaga', 'healthcare') "
        "AND NOT coalesce(array_to_string(proconfig, ' '), '') ~ 'search_path=pg_catalog'"
    )
    assert loose == []
    ran = await evosaga("doctor")
    assert "nothing of ours is open to anon, authenticated or PUBLIC" in ran.out


@pytest.mark.usefixtures("roles")
async def test_somebody_elses_table_is_left_as_it_is_and_doctor_says_that_it_is_open(
    empty: str, pool: Pool, evosaga: Evosaga
) -> None:
    await pool.execute(
        "CREATE SCHEMA healthcare; CREATE TABLE healthcare.integrations (id uuid PRIMARY KEY, "
        "organization_id uuid NOT NULL, type text NOT NULL, provider text NOT NULL, "
        "status text NOT NULL, config jsonb, webhook_token text, note text);"
        "INSERT INTO healthcare.integrations VALUES (gen_random_uuid(), gen_random_uuid(), "
        "'whatsapp', 'evolution', 'connected', '{\"instance_name\": \"old\"}', 'in-clear');"
        "GRANT USAGE ON SCHEMA healthcare TO anon; GRANT SELECT ON healthcare.integrations TO anon"
    )
    await migrations.migrate(empty)
    assert await unguarded(pool) == ["healthcare.integrations"]
    token = await pool.fetchval("SELECT webhook_token FROM healthcare.integrations")
    assert token == stored("in-clear"), "old ones are kept as hashes from now on"
    ran = await evosaga("doctor")
    assert ran.code == 1
    assert "healthcare.integrations is open to anon" in ran.out
    assert "REVOKE ALL ON TABLE healthcare.integrations FROM anon" in ran.out


async def test_a_second_migration_changes_nothing(empty: str, pool: Pool) -> None:
    await migrations.migrate(empty)
    look = "SELECT array_agg(xmin::text || oid ORDER BY oid) FROM pg_class"
    before = await pool.fetchval(look)
    await migrations.migrate(empty)
    assert await pool.fetchval(look) == before


def documented() -> list[str]:
    """The SQL of the chapter about the role of least privilege."""
    text = (ROOT / "docs" / "operations.md").read_text()
    chapter = text.split("## A role of least privilege")[1].split("\n## ")[0]
    return re.findall(r"```sql\n(.*?)```", chapter, re.DOTALL)


async def test_the_documented_role_runs_everything_but_migrate(
    empty: str,
    pool: Pool,
    settings: Settings,
    evosaga: Evosaga,
    redis: Redis,
    evolution: SimulatedEvolution,
    admin: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    role = f"evosaga_{uuid.uuid4().hex[:8]}"
    for script in documented():
        # Roles are the cluster's, and this one is made for each run.
        script = script.replace("evosaga_app", role)
        for statement in filter(None, (part.strip() for part in script.split(";"))):
            try:
                await pool.execute(statement)
            except asyncpg.DuplicateObjectError:
                assert "CREATE ROLE evosaga_service" in statement
    await migrations.migrate(empty)
    plain = await pool.fetchrow("SELECT * FROM pg_roles WHERE rolname = $1", role)
    assert plain is not None
    assert not any(plain[f"rol{it}"] for it in ("super", "bypassrls", "createdb", "createrole"))
    as_role = evosaga.having(
        database_url=str(settings.database_url).replace("postgres@", f"{role}@"),
        api_keys=API_KEYS,
    )
    try:
        own = {"database_url": as_role.variables["EVOSAGA_DATABASE_URL"], "api_keys": API_KEYS}
        its_own = Settings.model_validate(settings.model_dump() | own)
        async with running_worker(its_own):
            made = await outcome(pool, await publish(redis, create()))
            assert made.status == "completed"
            for verb in (
                ["doctor"],
                ["reconcile", "--fix"],
                ["health", "--fix"],
                ["rebuild"],
                ["check-deploy"],
                ["list"],
                ["letters"],
                ["why", str(made.saga_id)],
                ["events", str(made.saga_id)],
                ["events", "republish", "--since", "1h"],
                ["migrate"],
            ):
                ran = await as_role(*verb)
                assert ran.code in (0, 1), (verb, ran)
                assert "permission denied" not in ran.out + ran.err, (verb, ran)
                assert not re.search("^bad +doors", ran.out, re.MULTILINE), ran.out
            gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
            assert gone.status == "completed"
            again = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
            assert again.code == "not_found"
        await serves(its_own)
        assert evolution.rows() == {}
        as_itself = await open_pool(as_role.variables["EVOSAGA_DATABASE_URL"])
        given = await as_itself.fetchval(f"SELECT {log_loss.GIVEN}")
        numbers = "SELECT last_value FROM evosaga.saga_events_position_seq"
        assert given == await as_itself.fetchval(numbers)
        for forbidden in (
            "UPDATE evosaga.saga_events SET type = 'x'",
            "DROP TABLE evosaga.sagas",
            "UPDATE evosaga.alembic_version SET version_num = '0'",
            "CREATE TABLE healthcare.more ()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await as_itself.execute(forbidden)
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await as_itself.execute("DELETE FROM evosaga.saga_events")
        await as_itself.execute(
            "UPDATE evosaga.relay SET position = (SELECT max(position) FROM evosaga.saga_events)"
        )
        assert await RejectedSagaArchive(as_itself, "me", keep=0.0, most=0).archive() == 1, (
            "not_found"
        )
        as_itself.terminate()
    finally:
        await admin.execute(f"DROP ROLE IF EXISTS {role}")


async def serves(settings: Settings) -> None:
    """The API and a worker beside it become ready, and make an integration."""
    async with (
        parts_with_worker(settings) as parts,
        served(parts) as at,
        client_with(at, OPERATOR) as http,
    ):

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(ready, 30, 0.1)
        data: dict[str, Any] = create()["data"]
        made = await http.post("/integrations/evolution/create", json=data)
        assert made.status_code == 201, made.text
        name = made.json()["instance_name"]
        for path in ("/integrations", f"/integrations/evolution/{name}", "/sagas", "/metrics"):
            assert (await http.get(path)).status_code == 200, path
        gone = await http.delete(f"/integrations/evolution/{name}")
        assert gone.json()["success"] is True
