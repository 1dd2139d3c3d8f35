"""Pairing on an Evolution that shows few codes, and without Redis."""

import asyncio
import socket
from typing import Any

import pytest

from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.local.handle import LocalServer
from tests.conftest import API_KEY
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House, open_house
from tests.whatsapp.webhooks.test_pairing import ask, connects


async def test_without_redis_evolution_is_asked_each_time(
    settings: Settings,
    listener: socket.socket,
    evolution: SimulatedEvolution,
    own_valkey: LocalServer,
) -> None:
    settings = settings.model_copy(update={"redis_url": own_valkey.url})
    async with open_house(settings, listener, evolution) as house:
        name = await house.integration()
        await asyncio.to_thread(own_valkey.stop)
        assert (await ask(house, name)).state == "qr"
        await asyncio.to_thread(own_valkey.start_again)


class TestTheLimit:
    @pytest.fixture
    async def evolution(self) -> Any:
        """Shows two codes, of a quarter of a second each."""
        async with SimulatedEvolution(api_key=API_KEY, pace=0.005, qrcode_limit=2) as server:
            yield server

    async def test_when_all_codes_were_shown_a_person_must_ask_for_a_new_series(
        self, house: House
    ) -> None:
        name = await house.integration()

        async def over() -> bool:
            return (await ask(house, name)).state == "limit_reached"

        await eventually(over)
        assert (await house.row(name))["status"] == "pending"
        asked = connects(house.evolution)
        assert (await ask(house, name, watching=True)).state == "limit_reached"
        assert connects(house.evolution) == asked, "nobody has asked for a new series"
        await house.redis.delete(f"evosaga:pairing:{name}")
        assert (await ask(house, name, again=True)).state == "qr"
