"""The routing worker of the docs, run as anybody would run it."""

import importlib
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.driving import delete, entries, outcome, publish
from tests.support.sample_worker import SampleWorker, sample_worker
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House


@pytest.fixture
async def worker(house: House) -> AsyncIterator[SampleWorker]:
    async with sample_worker(house.parts.settings) as worker:
        yield worker


async def test_it_knows_every_instance_and_hands_each_message_to_its_clinic(
    house: House, worker: SampleWorker
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
    house: House, worker: SampleWorker
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
    async with sample_worker(house.parts.settings) as another:
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
