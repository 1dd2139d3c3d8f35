"""Real servers for every test that touches one, started by the project itself.

``--servers=docker`` runs the same suite on testcontainers. Each test gets a migrated and empty
database, an empty Valkey and a simulated Evolution server.
"""

import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool, open_pool
from evosaga.orchestrator.cli.run import settle
from evosaga.orchestrator.config.settings import Settings, load_settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from evosaga.orchestrator.local.postgres import SETTINGS
from evosaga.orchestrator.local.valkey import local_valkey
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.tls import trusted
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from tests.support.cheaper import few_connections, reads_soon_again, routes_prepared_once
from tests.support.databases import NEEDLESS, Databases, another, brief_postgres
from tests.support.databases import databases as make_databases

API_KEY = "the-global-key-of-the-tests"
SECRET = "a-secret-key-of-thirty-two-bytes-or-more"


@dataclass(frozen=True)
class Servers:
    """Where the suite's Postgres and Valkey are."""

    postgres: str
    redis: str

    def database(self, name: str) -> str:
        """The URL of another database on the same server."""
        return another(self.postgres, name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        choices=["local", "docker"],
        default="local",
        help="where Postgres and Valkey come from: wheels (local) or testcontainers (docker)",
    )
    parser.addoption("--fault", metavar="ID", help="run only what proves that fault, such as a3")


def _docker_answers() -> bool:
    """Whether a Docker engine listens: a plain connect, since the client is slow and noisy."""
    import os

    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    parts = urlsplit(host)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(2)
                probe.connect(parts.path)
        else:
            socket.create_connection((parts.hostname or "", parts.port or 2375), 2).close()
    except OSError:
        return False
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if fault := config.getoption("--fault"):
        items[:] = [
            item for item in items if any(fault in mark.args for mark in item.iter_markers("fault"))
        ]
    if config.getoption("--servers") == "docker" and not _docker_answers():
        reason = pytest.mark.skip(reason="no Docker engine answers; `make test` needs none")
        for item in items:
            item.add_marker(reason)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, so to look through it again and again finds nothing: a quarter of
    the time that the imports of each test process take.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """As every process of the product does once it has imported what it needs."""
    settle()


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Postgres and Valkey for the whole run."""
    if request.config.getoption("--servers") == "docker":
        from testcontainers.community.postgres import PostgresContainer
        from testcontainers.community.redis import RedisContainer

        with (
            PostgresContainer("postgres:17-alpine", driver=None) as postgres,
            RedisContainer("valkey/valkey:8-alpine") as valkey,
        ):
            host, port = valkey.get_container_host_ip(), valkey.get_exposed_port(6379)
            yield Servers(postgres.get_connection_url(), f"redis://{host}:{port}/0")
        return
    from evosaga.orchestrator.local.servers import local_servers

    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for setting in NEEDLESS:
                patch.setitem(SETTINGS, setting, "off")
            local = stack.enter_context(local_servers())
        yield Servers(local.postgres.url, local.valkey.url)
        for server in local:  # nobody needs the data, and an orderly end writes all of it
            server.kill()


@pytest.fixture(scope="session")
async def databases(servers: Servers) -> AsyncIterator[Databases]:
    """Migrated databases, one after another."""
    databases = await make_databases(servers.postgres)
    with databases.kept.in_pools():
        yield databases
    await databases.close()


@pytest.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """A migrated database of the test's own."""
    name = await databases.take()
    yield databases.url(name)
    await databases.give_back(name)


@pytest.fixture(scope="session", autouse=True)
def _cheaper() -> Iterator[None]:
    with routes_prepared_once(), few_connections(), reads_soon_again():
        yield


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """Connections to the test's database."""
    pool = await open_pool(database_url)
    yield pool
    pool.terminate()


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """An empty Valkey."""
    client = streams.connect(servers.redis)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def evolution() -> AsyncIterator[SimulatedEvolution]:
    """A simulated Evolution server on which simulated waits are twenty times shorter."""
    async with SimulatedEvolution(api_key=API_KEY, pace=0.05) as server:
        yield server


@pytest.fixture(scope="session")
def short_waits(servers: Servers) -> Settings:
    """Read once: the environment, which they are read from, stays the same for all tests."""
    return load_settings(
        _env_file=None,
        redis_url=servers.redis,
        evolution_api_key=API_KEY,
        secret_key=SECRET,
        quiet_seconds=0.3,
        lease_seconds=1.5,
        evolution_timeout=5.0,
        unknown_command_seconds=0.2,
    )


@pytest.fixture
def settings(
    short_waits: Settings, database_url: str, redis: Redis, evolution: SimulatedEvolution
) -> Settings:
    """What a worker of this test needs, with short waits."""
    own = {"database_url": database_url, "evolution_url": evolution.url}
    return short_waits.model_copy(update=own)


@pytest.fixture
async def services(redis: Redis, evolution: SimulatedEvolution) -> AsyncIterator[Services]:
    """What steps may touch, for tests that call them without a worker."""
    api = EvolutionApi(evolution.url, API_KEY, timeout=0.3)
    async with api, httpx.AsyncClient(trust_env=False, verify=trusted()) as http:
        yield Services({"default": api}, redis, http, KeyRing([SECRET]), quiet_seconds=0.3)


@pytest.fixture
def own_postgres() -> Iterator[LocalServer]:
    """An empty Postgres of the test's own, to be killed and started again."""
    with brief_postgres() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[LocalServer]:
    """A Valkey of the test's own."""
    with local_valkey() as server:
        yield server


@pytest.fixture
async def own_redis(own_valkey: LocalServer) -> AsyncIterator[Redis]:
    """A client of ``own_valkey``."""
    client = streams.connect(own_valkey.url)
    yield client
    await client.aclose()
