"""A whole house: Evolution delivers its webhooks to a real HTTP server with a worker behind it."""

import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from evosaga.events import streams
from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.server import address, bind, listening, parts_with_worker
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.sagas.whatsapp.evolution.tls import trusted
from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import API_KEY, SECRET, Servers
from tests.support.databases import Databases
from tests.support.driving import create, outcome, publish
from tests.support.waiting import eventually


@dataclass
class House:
    """What a test holds of it."""

    parts: AppContext
    url: str
    evolution: SimulatedEvolution
    http: httpx.AsyncClient

    @property
    def pool(self) -> Pool:
        return self.parts.pool

    @property
    def redis(self) -> Redis:
        return self.parts.redis

    async def integration(self, **wanted: Any) -> str:
        """A new integration that waits for its phone; the name of its instance."""
        command = create(**{"channel": "WHATSAPP-BAILEYS", "name": "Clínica Sol"} | wanted)
        await publish(self.redis, command)
        saga = await outcome(self.pool, command["id"], 30)
        assert saga.status == "completed", saga
        return str(saga.instance_name)

    async def deliver(
        self,
        name: str,
        event: str = "connection.update",
        data: Any = None,
        *,
        token: str | None = None,
        at: str = "2026-01-01T12:00:00.000Z",
        **more: Any,
    ) -> httpx.Response:
        """What Evolution would POST, with the right token unless another is given."""
        body = {
            "event": event,
            "instance": name,
            "data": {"instance": name, **data} if isinstance(data, dict) else data,
            "destination": f"{self.url}/webhooks/evolution/{name}",
            "date_time": at,
            "server_url": self.evolution.url,
            "apikey": None,
        }
        headers = {"X-Webhook-Token": token or webhook_token(name)}
        return await self.post(f"/webhooks/evolution/{name}", body | more, headers)

    async def post(self, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = {name.encode(): value.encode() for name, value in headers.items()}
        told |= {b"Content-Type": b"application/json"}
        return await self.http.post(path, content=raw, headers=told)

    async def row(self, name: str) -> dict[str, Any]:
        """The integration's row; empty when there is none."""
        row = await self.pool.fetchrow(
            "SELECT * FROM healthcare.integrations WHERE config ->> 'instance_name' = $1", name
        )
        return dict(row) if row else {}

    async def stored(self, name: str) -> list[dict[str, Any]]:
        rows = await self.pool.fetch(
            "SELECT * FROM evosaga.webhooks WHERE instance_name = $1 ORDER BY id", name
        )
        return [dict(row) for row in rows]

    async def becomes(self, name: str, status: str, timeout: float = 15.0) -> dict[str, Any]:
        """Wait until the row says so."""

        async def there() -> bool:
            return (await self.row(name)).get("status") == status

        await eventually(there, timeout, message=f"{name} to be {status}")
        return await self.row(name)

    async def all_applied(self) -> None:
        """Wait until every webhook has been applied, and what came of it told."""

        async def applied() -> bool:
            waiting = await self.pool.fetchval(
                "SELECT (SELECT count(*) FROM evosaga.webhooks WHERE applied_at IS NULL)"
                " + (SELECT count(*) FROM evosaga.notices WHERE published_at IS NULL)"
            )
            return not waiting

        await eventually(applied, 30, message="every webhook to be applied")


def webhook_token(instance_name: str) -> str:
    """What Evolution was told to show for an instance with a derived name."""
    ring = KeyRing([SECRET])
    return ring.webhook_token(uuid.UUID(instance_name.removeprefix("wa-")), ring.current)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    listener = bind("127.0.0.1", 0)
    yield listener
    listener.close()


@pytest.fixture
def settings(settings: Settings, listener: socket.socket) -> Settings:
    """With a public address at which Evolution reaches us."""
    more = {"api_keys": f"tests:{'k' * 40}", "public_url": address(listener)}
    return Settings.model_validate(settings.model_dump() | more)


@contextlib.asynccontextmanager
async def open_house(
    settings: Settings, listener: socket.socket, evolution: SimulatedEvolution
) -> AsyncIterator[House]:
    """A worker and the API on these settings."""
    url = address(listener)
    async with (
        parts_with_worker(settings) as parts,
        listening(parts, listener),
        httpx.AsyncClient(base_url=url, trust_env=False, verify=trusted(), timeout=30) as http,
    ):
        yield House(parts, url, evolution, http)


@pytest.fixture(scope="module")
def own_settings() -> dict[str, Any]:
    """What the shared house of a module has that others have not."""
    return {}


@pytest.fixture(scope="module")
async def lasting_house(
    databases: Databases, servers: Servers, short_waits: Settings, own_settings: dict[str, Any]
) -> AsyncIterator[House]:
    """One house for all tests of a module, of which none may use servers of another fixture."""
    name, redis = await databases.take(), streams.connect(servers.redis)
    await redis.flushall()
    listener = bind("127.0.0.1", 0)
    async with SimulatedEvolution(api_key=API_KEY, pace=0.05) as evolution:
        own = {"database_url": databases.url(name), "evolution_url": evolution.url}
        more = {"api_keys": f"tests:{'k' * 40}", "public_url": address(listener)}
        settings = Settings.model_validate(short_waits.model_dump() | own | more | own_settings)
        async with open_house(settings, listener, evolution) as house:
            yield house
    listener.close()
    await redis.aclose()
    await databases.give_back(name)


@pytest.fixture
async def shared_house(lasting_house: House) -> AsyncIterator[House]:
    """The module's house with nothing in it: a worker and a server cost more than most tests."""
    yield replace(lasting_house)
    house = lasting_house
    house.evolution.disarm()
    house.evolution.whatsapp(reachable=True)
    for name in list(house.evolution.live()):
        house.evolution.drop(name)
    await house.pool.execute(
        "DELETE FROM evosaga.notices; DELETE FROM evosaga.webhooks; "
        "DELETE FROM healthcare.integrations"
    )
    await house.redis.delete("wa:events", "evosaga:events")


@pytest.fixture
async def house(
    settings: Settings, listener: socket.socket, evolution: SimulatedEvolution
) -> AsyncIterator[House]:
    async with open_house(settings, listener, evolution) as house:
        yield house
