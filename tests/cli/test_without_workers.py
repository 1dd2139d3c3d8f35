"""What people are told while no worker is alive, and when that no longer matters."""

import asyncio
import uuid
from pathlib import Path

import asyncpg
import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.app import running_worker
from evosaga.orchestrator.cli.errors import WRONG, explained
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.support.commandline import Evosaga, commandline, creation
from tests.support.driving import outcome


@pytest.fixture
def evosaga(tmp_path: Path, settings: Settings) -> Evosaga:
    return commandline(tmp_path, settings)


async def test_a_command_that_is_done_already_needs_no_worker(
    evosaga: Evosaga, settings: Settings, pool: Pool, evolution: SimulatedEvolution
) -> None:
    organization, clinic = str(uuid.uuid4()), str(uuid.uuid4())
    again = creation(**{"organization-id": organization, "clinic-id": clinic, "id": "c-1"})
    async with running_worker(settings):
        await evosaga(*again, "--no-wait")
        assert (await outcome(pool, "c-1")).status == "completed"
    told = await evosaga(*again)
    assert (told.code, "no worker is running" in told.err) == (0, False), told


async def test_a_postgres_without_tls_is_not_called_away(
    evosaga: Evosaga, settings: Settings
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"N")
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://me@127.0.0.1:{port}/x?sslmode=require"
        told = await evosaga.having(database_url=url)("list")
    assert told.code == 2
    assert "speaks no TLS, which EVOSAGA_DATABASE_URL asks for" in told.err


async def test_statements_that_are_given_no_time_are_not_called_an_outage(pool: Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(asyncpg.QueryCanceledError) as caught:
            await connection.execute("SET statement_timeout = 1; SELECT pg_sleep(5)")
        await connection.execute("RESET statement_timeout")
    told = explained(caught.value)
    assert told
    assert (told.code, "raise statement_timeout" in told.sentence) == (WRONG, True)
