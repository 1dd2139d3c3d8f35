"""A round that fails leaves nothing running behind it."""

import asyncio

import pytest

from evosaga.events.database import Pool
from evosaga.orchestrator.whatsapp.health import monitor
from evosaga.orchestrator.whatsapp.health.monitor import HealthMonitor, run_once
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from tests.conftest import SECRET


async def test_looks_at_other_servers_end_with_the_one_that_fails_and_its_error_is_told(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def look_at(_: HealthMonitor, server: str, *more: object) -> str:
        if server == "broken":
            await begun.wait()
            raise ConnectionResetError("Postgres went away")
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return "it does not answer"

    monkeypatch.setattr(monitor, "look_at", look_at)
    services = Services({}, None, None, KeyRing([SECRET]), pool=pool)  # type: ignore[arg-type]
    with pytest.raises(ConnectionResetError):
        await run_once(HealthMonitor(pool, services), only=["slow", "broken"])
    assert ended.is_set()
