"""The routing worker of the README, run as anybody would run it."""

import asyncio
import contextlib
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.driving import delete, entries, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House

ROOT = Path(__file__).parents[3]


class Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> Any:
        """The next line."""
        assert self.process.stdout is not None
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 30))


@contextlib.asynccontextmanager
async def started(house: House) -> AsyncIterator[Worker]:
    settings = house.parts.settings
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "docs" / "routing_worker.py"),
        str(settings.redis_url),
        str(settings.database_url),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Worker(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
async def worker(house: House) -> AsyncIterator[Worker]:
    async with started(house) as worker:
        yield worker


async def test_it_knows_every_instance_and_hands_each_message_to_its_clinic(
    house: House, worker: Worker
) -> None:
    name = await house.integration(channel="EVOLUTION", name="Clínica Lua")
    assert await worker.says() == {"added": name, "instances": 1}
    for n in (1, 2):
        assert (await house.deliver(name, "messages.upsert", {"n": n})).is_success
        told = await worker.says()
        assert (told["clinic"], told["event"]) == ("Clínica Lua", "messages.upsert")

    async def acknowledged() -> bool:
        (group,) = await house.redis.xinfo_groups("wa:events")
        return bool(group["pending"] == 0 and group["entries-read"] == 2)

    await eventually(acknowledged)
    command = delete(name)
    await publish(house.redis, command)
    assert (await outcome(house.pool, command["id"], 30)).status == "completed"
    assert await worker.says() == {"removed": name, "instances": 0}


async def test_what_another_worker_took_and_did_not_finish_is_taken_over(
    house: House, worker: Worker
) -> None:
    name = await house.integration(channel="EVOLUTION", name="Clínica Lua")
    await worker.says()
    await house.deliver(name, "messages.upsert", {"n": 1})
    first = await worker.says()
    worker.process.kill()
    ((id_, _),) = await entries(house.redis, "wa:events")
    # As if it had been killed before the XACK, a minute ago.
    await house.redis.xgroup_setid("wa:events", "routing", "0")
    await house.redis.xreadgroup("routing", "dead", {"wa:events": ">"})
    await house.redis.xclaim("wa:events", "routing", "dead", 0, [id_], idle=60_000)
    async with started(house) as another:
        said = [await another.says(), await another.says()]
        assert first in said
        assert {"added": name, "instances": 1} in said


def test_without_what_it_needs_the_module_for_routing_workers_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("evosaga.routing", "evosaga.orchestrator.routing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs asyncpg: pip install 'evosaga\[server\]'"
    ):
        importlib.import_module("evosaga.routing")
