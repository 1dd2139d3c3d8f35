"""Deliveries while something behind the door is down, hangs or dies."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from evosaga import migrations
from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from tests.harness.chaos.worker import start_worker
from tests.support.driving import entries
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House, open_house, webhook_token

OPEN = {"state": "open", "statusReason": 200}
CLOSE = {"state": "close", "statusReason": 401}


@pytest.mark.fault("w7")
async def test_while_postgres_is_down_evolution_is_asked_to_come_again(
    settings: Settings,
    listener: socket.socket,
    evolution: SimulatedEvolution,
    own_postgres: LocalServer,
) -> None:
    await migrations.migrate(own_postgres.url)
    settings = settings.model_copy(update={"database_url": own_postgres.url})
    async with open_house(settings, listener, evolution) as house:
        name = await house.integration(channel="EVOLUTION")
        await asyncio.to_thread(own_postgres.stop)
        for event, data in (("connection.update", CLOSE), ("status.instance", {})):
            refused = await house.deliver(name, event, data)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
        await asyncio.to_thread(own_postgres.start_again)

        async def taken() -> bool:
            return (await house.deliver(name, data=CLOSE)).status_code == 200

        await eventually(taken)
        assert [it["state"] for it in await house.stored(name)] == ["close"]


@pytest.mark.fault("w8")
async def test_while_redis_is_down_our_own_events_are_taken_and_messages_are_not(
    settings: Settings,
    listener: socket.socket,
    evolution: SimulatedEvolution,
    own_valkey: LocalServer,
) -> None:
    settings = settings.model_copy(update={"redis_url": own_valkey.url})
    async with open_house(settings, listener, evolution) as house:
        name = await house.integration(channel="EVOLUTION")
        await asyncio.to_thread(own_valkey.stop)
        qr = {"code": "2@x", "base64": "data:image/png;base64,xx", "pairingCode": None}
        for event, data in (("connection.update", CLOSE), ("qrcode.updated", {"qrcode": qr})):
            taken = await house.deliver(name, event, data)
            assert (taken.status_code, taken.json()) == (200, {"status": "stored"})
        assert (await house.deliver(name, "messages.upsert", {"text": "oi"})).status_code == 503
        await asyncio.to_thread(own_valkey.start_again)

        async def taken_too() -> bool:
            return (await house.deliver(name, "messages.upsert", {"text": "oi"})).status_code == 200

        await eventually(taken_too)
        assert len(await entries(house.redis, "wa:events")) == 1


@pytest.mark.fault("w9")
async def test_a_delivery_is_answered_while_evolution_hangs_and_applied_when_it_is_back(
    settings: Settings, listener: socket.socket, evolution: SimulatedEvolution
) -> None:
    settings = settings.model_copy(update={"evolution_timeout": 1.0})
    async with open_house(settings, listener, evolution) as house:
        name = await house.integration()
        await house.all_applied()
        hung = house.evolution.arm("hang_before", operation="connectionState", times=None)
        house.evolution.pair(name)
        await eventually(lambda: hung.fired)
        taken = await house.deliver(name, data=OPEN, at="2031-01-01T00:00:00.000Z")
        assert taken.status_code == 200
        assert (await house.row(name))["status"] == "pending"
        house.evolution.disarm()
        await house.becomes(name, "connected", 60)


class TestW6Deaths:
    """The process that receives is killed at the worst moment, and Evolution delivers again."""

    @pytest.fixture
    def api(self, settings: Settings, tmp_path: Path) -> Iterator[Callable[[str], httpx.Client]]:
        """Starts the API as a process that dies at a sync point; a client of it."""
        running: list[Any] = []

        def start(point: str) -> httpx.Client:
            assert settings.evolution_api_key
            assert settings.secret_key
            assert settings.api_keys
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            armed = [{"at": point, "do": "kill", "once": str(tmp_path / "struck")}]
            environment = {
                "EVOSAGA_DATABASE_URL": str(settings.database_url),
                "EVOSAGA_REDIS_URL": str(settings.redis_url),
                "EVOSAGA_EVOLUTION_URL": str(settings.evolution_url),
                "EVOSAGA_EVOLUTION_API_KEY": settings.evolution_api_key.get_secret_value(),
                "EVOSAGA_SECRET_KEY": settings.secret_key.get_secret_value(),
                "EVOSAGA_API_KEYS": settings.api_keys.get_secret_value(),
                "EVOSAGA_SYNC_POINTS": json.dumps(armed),
            }
            words = ("api", "--port", str(port))
            process = start_worker(environment, tmp_path / "api.log", words)
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
            running.extend((process, client))
            return client

        yield start
        for it in running:
            if isinstance(it, httpx.Client):
                it.close()
            else:
                it.kill()
                it.join()

    @pytest.mark.fault("w6")
    @pytest.mark.parametrize(("point", "kept"), [("wh.pre", 0), ("wh.post", 1)])
    async def test_what_is_delivered_again_after_a_death_is_stored_once(
        self, house: House, api: Callable[[str], httpx.Client], point: str, kept: int
    ) -> None:
        name = await house.integration(channel="EVOLUTION")
        told = {"event": "connection.update", "instance": name, "data": CLOSE, "date_time": "x"}
        headers = {"X-Webhook-Token": webhook_token(name)}

        async def deliver(client: httpx.Client) -> int:
            def post() -> int:
                try:
                    path = f"/webhooks/evolution/{name}"
                    return client.post(path, json=told, headers=headers, timeout=30).status_code
                except httpx.ConnectError:
                    return 0  # not up yet
                except httpx.TransportError:
                    return -1  # died without an answer

            return await asyncio.to_thread(post)

        async def answered(client: httpx.Client) -> int:
            got: list[int] = []

            async def once() -> bool:
                got[:] = [await deliver(client)]
                return got[0] != 0

            await eventually(once, 30, every=0.1)
            return got[0]

        assert await answered(api(point)) == -1
        assert len(await house.stored(name)) == kept
        again = api(point)
        assert await answered(again) == 200
        assert await deliver(again) == 200
        assert len(await house.stored(name)) == 1
