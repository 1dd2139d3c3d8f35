"""Servers, a worker and an API that stand as long as a module, for tests that only ask.

What one of these tests leaves behind the next one meets. So they look at what they made
themselves, for organizations of their own, and nothing of theirs kills, empties or counts all.
A module that wants them assigns ``ONES`` to the names of the usual fixtures.
"""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from tests.api.conftest import API_KEYS, served
from tests.api.pages import hasty_parts
from tests.conftest import API_KEY, Servers
from tests.support.databases import Databases


@pytest.fixture(scope="module")
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """A migrated database of the module's own."""
    name = await databases.take()
    yield databases.url(name)
    await databases.give_back(name)


@pytest.fixture(scope="module")
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """A Valkey that was empty when the module began."""
    client = streams.connect(servers.redis)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
async def evolution() -> AsyncIterator[SimulatedEvolution]:
    """Evolution for all tests of the module."""
    async with SimulatedEvolution(api_key=API_KEY, pace=0.05) as server:
        yield server


@pytest.fixture(scope="module")
def settings(
    short_waits: Settings, database_url: str, redis: Redis, evolution: SimulatedEvolution
) -> Settings:
    """With the keys of all callers."""
    own = {"database_url": database_url, "evolution_url": evolution.url, "api_keys": API_KEYS}
    return Settings.model_validate(short_waits.model_dump() | own)


@pytest.fixture(scope="module")
async def parts(settings: Settings) -> AsyncIterator[AppContext]:
    """A worker that gives up soon, and all that the API stands on."""
    async with hasty_parts(settings) as parts:
        yield parts


@pytest.fixture(scope="module")
async def address_(parts: AppContext) -> AsyncIterator[str]:
    """Where the API listens."""
    async with served(parts) as where:
        yield where


ONES = (database_url, redis, evolution, settings, parts, address_)
