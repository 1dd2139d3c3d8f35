"""Webhooks from several Evolution servers: each look goes to the server of the row."""

import socket
from collections.abc import AsyncIterator

import pytest

from evosaga.orchestrator.config.settings import Settings
from evosaga.orchestrator.local.evolution import SimulatedEvolution
from evosaga.orchestrator.whatsapp.webhooks import processor
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import open_house

KEY = "the-key-of-berlin"


@pytest.fixture
async def berlin() -> AsyncIterator[SimulatedEvolution]:
    async with SimulatedEvolution(api_key=KEY, pace=0.05) as server:
        yield server


async def test_looks_at_one_server_do_not_wait_for_another_that_hangs(
    settings: Settings,
    listener: socket.socket,
    evolution: SimulatedEvolution,
    berlin: SimulatedEvolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One look at a time, and six that Berlin leaves without an answer: half a minute of them."""
    monkeypatch.setattr(processor, "_LOOKS", 1)
    servers = {"berlin": {"url": berlin.url, "api_key": KEY}}
    given = Settings.model_validate(settings.model_dump() | {"evolution_servers": servers})
    async with open_house(given, listener, evolution) as house:
        there = [await house.integration(server="berlin") for _ in range(6)]
        here = await house.integration()
        await house.all_applied()
        hung = berlin.arm("hang_before", operation="connectionState", times=None)
        for name in there:
            berlin.pair(name)
        await eventually(lambda: hung.fired)
        evolution.pair(here)
        await house.becomes(here, "connected")
        assert {(await house.row(name))["status"] for name in there} == {"pending"}
        berlin.disarm()
        await berlin.restart()
        for name in there:
            await house.becomes(name, "connected", 90)
