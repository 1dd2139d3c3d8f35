"""The SQL of ``deploy/supabase``, and the product as its role, behind a pooler."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.config.settings import Settings
from tests.conftest import Servers
from tests.support.driving import create, delete, impatient, outcome, publish

SQL: Final = Path(__file__).parents[2] / "deploy" / "supabase"
CLAIMS: Final = "SELECT set_config('request.jwt.claims', $1, true)"

REFUSED: Final = (
    ("authenticated", "SELECT webhook_token FROM healthcare.integrations"),
    ("authenticated", "UPDATE healthcare.integrations SET enabled = false"),
    ("authenticated", "SELECT saga_id FROM evosaga.sagas"),
    ("anon", "SELECT id FROM healthcare.integrations"),
    ("evosaga_app", "CREATE TABLE evosaga.more (id int)"),
    ("evosaga_app", "UPDATE evosaga.saga_events SET type = 'other'"),
    ("evosaga_app", "TRUNCATE evosaga.saga_events"),
)


@pytest.fixture
def role() -> str:
    return "evosaga_app"


@pytest.fixture
async def database_url(servers: Servers) -> AsyncIterator[str]:
    """A database as the page about Supabase makes it; its owner's way to it."""
    admin = await asyncpg.connect(servers.postgres)
    for stranger in ("anon", "authenticated", "service_role"):
        with contextlib.suppress(asyncpg.DuplicateObjectError):
            await admin.execute(f"CREATE ROLE {stranger} NOLOGIN")
    name = f"supabase_{uuid.uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name}")
    url = urlunsplit(urlsplit(servers.postgres)._replace(path=f"/{name}"))
    owner = await asyncpg.connect(url)
    await owner.execute((SQL / "roles.sql").read_text())
    await migrations.migrate(url)
    for _ in range(2):  # it is run after every migration
        await owner.execute((SQL / "postgrest.sql").read_text())
    await owner.close()
    yield url
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.execute("DROP ROLE evosaga_app")
    await admin.close()


async def test_the_product_runs_as_the_role_and_people_see_their_own_rows_alone(
    settings: Settings, pool: Pool, redis: Redis
) -> None:
    async with running_worker(settings, impatient()):
        made = await outcome(pool, await publish(redis, create()))
        other = await outcome(pool, await publish(redis, create()))
        assert {made.status, other.status} == {"completed"}
        theirs = f'{{"organization_id": "{made.organization_id}"}}'
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL ROLE authenticated")
            assert await connection.fetch("SELECT id FROM healthcare.integrations") == []
            await connection.execute(CLAIMS, theirs)
            rows = await connection.fetch("SELECT id, status FROM healthcare.integrations")
            assert [row["id"] for row in rows] == [made.saga_id]
        gone = await outcome(pool, await publish(redis, delete(str(made.instance_name))))
        assert gone.status == "completed"
    for who, query in REFUSED:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {who}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute(query)
