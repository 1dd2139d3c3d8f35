"""Lists are read from a standby: never one that is late, and never past one's own writing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from evosaga import migrations
from evosaga.events.database import open_pool
from evosaga.events.replica import Replica
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import parts_alone
from evosaga.orchestrator.cli.doctor_replication import check_replica
from evosaga.orchestrator.config.settings import Settings, SettingsError, load_settings
from evosaga.orchestrator.local.postgres import local_postgres
from tests.api.conftest import API_KEYS, OPERATOR, client_with, served
from tests.support.standby import Pair, standby_of
from tests.support.waiting import eventually

LAG = 4.0
_SAGA = """
INSERT INTO evosaga.sagas (saga_id, saga, version, status, business_key, command_id, command_hash,
    correlation_id, next_sequence)
VALUES (md5($1)::uuid, 'create-integration', 1, 'completed', $1, $1, '', $1, 3)
"""


@dataclass(frozen=True)
class Town:
    """A primary, its standby, and an API that knows of both."""

    pair: Pair
    settings: Settings
    parts: AppContext
    address: str

    async def write(self, command: str) -> None:
        connection = await asyncpg.connect(self.pair.primary.url)
        await connection.execute(_SAGA, command)
        await connection.close()

    async def standby(self, query: str) -> None:
        await self.pair._ask(self.pair.standby, query)

    async def doctor(self) -> tuple[str, str]:
        [found] = [one async for one in check_replica(self.settings, self.parts.pool)]
        return found.verdict, found.said

    def asking(self, key: str | None = OPERATOR) -> httpx.AsyncClient:
        return client_with(self.address, key)


@pytest.fixture
async def town(settings: Settings, redis: Redis) -> AsyncIterator[Town]:
    async with contextlib.AsyncExitStack() as stack:
        primary = stack.enter_context(local_postgres())
        await migrations.migrate(primary.url)
        pair = Pair(primary, stack.enter_context(standby_of(primary)))
        known = Settings.model_validate(
            settings.model_dump()
            | {
                "api_keys": f"{API_KEYS},another:another-operators-key-of-the-tests",
                "database_url": primary.url,
                "database_replica_url": pair.standby.url,
                "database_replica_lag": LAG,
            }
        )
        parts = await stack.enter_async_context(parts_alone(known))
        address = await stack.enter_async_context(served(parts))
        yield Town(pair, known, parts, address)
        for server in (pair.standby, pair.primary):
            server.kill()


async def listed(client: httpx.AsyncClient) -> set[str]:
    answer = await client.get("/sagas?limit=100")
    assert answer.status_code == 200, answer.text
    return {saga["command_id"] for saga in answer.json()["sagas"]}


async def test_lists_come_from_the_standby_as_long_as_that_does_not_show(town: Town) -> None:
    replica = town.parts.replica
    assert replica is not None
    await town.write("one")
    async with town.asking() as writer, town.asking("another-operators-key-of-the-tests") as reader:

        async def read_there() -> bool:
            return await replica.pool() is not town.parts.pool and await listed(reader) == {"one"}

        await eventually(read_there, 20, message="lists to be read from the standby")
        assert (await town.doctor())[0] == "ok"

        replica._looked -= 3600
        looks, meanwhile = await asyncio.gather(replica.pool(), replica.pool())
        assert meanwhile is town.parts.pool, "what is known is an hour old"
        assert looks is not town.parts.pool

        await town.standby("SELECT pg_wal_replay_pause()")
        await town.write("two")
        assert await listed(reader) == {"one"}, "it is the standby that answers"
        told = await writer.post("/commands", json={"type": "nonsense"})
        assert "evosaga_wrote=1; Max-Age=6" in told.headers["set-cookie"]
        async with town.asking("no-key-at-all") as stranger:
            refused = await stranger.post("/commands", json={"type": "nonsense"})
        assert (refused.status_code, refused.headers.get("set-cookie")) == (401, None)
        assert await listed(writer) == {"one", "two"}, "by its key"
        reader.cookies.update(told.cookies)
        assert await listed(reader) == {"one", "two"}, "by its cookie"
        reader.cookies.clear()

        async def too_late() -> bool:
            return await listed(reader) == {"one", "two"}

        await eventually(too_late, 30, message="the standby to be too late")
        assert replica.trouble is not None
        assert "lags by" in replica.trouble
        await town.standby("SELECT pg_wal_replay_resume()")

        async def caught_up() -> bool:
            return bool(await listed(reader)) and replica.trouble is None

        await eventually(caught_up, 30, message="the standby to be read again")
        town.pair.standby.kill()

        async def said_so() -> bool:
            assert await listed(reader) == {"one", "two"}, "no request fails with it"
            return "does not answer" in str(replica.trouble)

        await eventually(said_so, 30, message="the primary to be read without the standby")
        verdict, said = await town.doctor()
        assert (verdict, "does not answer" in said) == ("warn", True)


def test_several_hosts_are_refused_with_what_to_name_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVOSAGA_DATABASE_REPLICA_URL", "postgresql://a:5432,b:5432/x")
    with pytest.raises(SettingsError, match="EVOSAGA_DATABASE_REPLICA_URL: must name one standby"):
        load_settings(_env_file=None)


async def test_a_standby_of_another_cluster_is_refused_also_by_a_role_without_rights(
    town: Town,
) -> None:
    """Its place in the log means nothing here, and its rows are another system's."""
    with local_postgres() as stranger:
        connection = await asyncpg.connect(stranger.url)
        await connection.execute("CREATE ROLE plain LOGIN")
        await connection.close()
        parts = urlsplit(stranger.url)
        url = parts._replace(netloc=f"plain@{parts.netloc.rpartition('@')[2]}").geturl()
        primary = await open_pool(url, size=1)
        try:
            assert await primary.fetchval("SELECT current_user") == "plain"
            replica = Replica(primary, town.pair.standby.url, LAG)
            assert await replica.pool() is primary
            assert "is a standby of another cluster" in str(replica.trouble)
            await replica.close()
            [found] = [one async for one in check_replica(town.settings, primary)]
            assert found.verdict == "warn"
            assert "another cluster" in found.said
            assert "does EVOSAGA_DATABASE_REPLICA_URL name a standby?" in found.cure
        finally:
            await primary.close()
