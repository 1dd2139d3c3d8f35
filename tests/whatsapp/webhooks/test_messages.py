"""What is not ours to apply is handed on to the routing workers, once and to the right clinic."""

import asyncio
import json
import uuid

import pytest

from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.conftest import SECRET
from tests.support.driving import create, delete, entries, outcome, publish
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House

MESSAGE = {
    "key": {"remoteJid": "5511999990000@s.whatsapp.net", "fromMe": False, "id": "3EB0"},
    "pushName": "Zoë \ud83d",
    "message": {"conversation": "Quero marcar uma consulta 👋"},
    "messageType": "conversation",
}


@pytest.fixture
def house(shared_house: House) -> House:
    return shared_house


async def test_a_message_is_appended_with_the_clinic_it_belongs_to(house: House) -> None:
    command = create(channel="EVOLUTION")
    await publish(house.redis, command)
    name = str((await outcome(house.pool, command["id"])).instance_name)
    answer = await house.deliver(name, "messages.upsert", MESSAGE, sender="5511@s.whatsapp.net")
    assert (answer.status_code, answer.json()) == (200, {"status": "queued"})
    ((_, entry),) = await entries(house.redis, "wa:events")
    routing = {
        "instance_name": name,
        "clinic_id": command["data"]["clinic_id"],
        "organization_id": command["data"]["organization_id"],
        "event": "messages.upsert",
    }
    fields = {name.decode(): value.decode() for name, value in entry.items()}
    told = json.loads(fields.pop("data"))
    assert fields == routing
    assert told["type"] == "messages.upsert"
    assert told["subject"] == name
    assert told["data"] == routing | {
        # Half of a character is JSON by its grammar, and to most who read JSON it is not.
        "data": {"instance": name, **MESSAGE, "pushName": "Zoë \N{REPLACEMENT CHARACTER}"},
        "date_time": "2026-01-01T12:00:00.000Z",
        "sender": "5511@s.whatsapp.net",
    }


async def test_whatever_is_not_ours_is_handed_on(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    events = ["messages.update", "send.message", "call", "never.heard.of"]
    for event in events:
        assert (await house.deliver(name, event, [{"id": 1}])).json() == {"status": "queued"}
    told = [entry[b"event"].decode() for _, entry in await entries(house.redis, "wa:events")]
    assert told == events


@pytest.mark.fault("w3")
async def test_a_message_that_is_delivered_again_is_handed_on_once(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    answers = await asyncio.gather(
        *(house.deliver(name, "messages.upsert", MESSAGE) for _ in range(10))
    )
    assert sorted(it.json()["status"] for it in answers) == ["queued"] + ["repeated"] * 9
    other = await house.deliver(name, "messages.upsert", MESSAGE | {"messageType": "x"})
    assert other.json() == {"status": "queued"}
    assert len(await entries(house.redis, "wa:events")) == 2


async def test_no_query_is_made_for_a_message_whose_route_is_known(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    await house.deliver(name, "messages.upsert", {"n": "warm"})
    away = "ALTER TABLE healthcare.{} RENAME TO {}"
    await house.pool.execute(away.format("integrations", "nobody_may_look_here"))
    try:
        for n in range(20):
            answer = await house.deliver(name, "messages.upsert", {"n": n})
            assert answer.json() == {"status": "queued"}
    finally:
        await house.pool.execute(away.format("nobody_may_look_here", "integrations"))


@pytest.mark.fault("f6")
async def test_a_flushed_cache_loses_no_message(house: House) -> None:
    name = await house.integration(channel="EVOLUTION")
    await house.redis.delete(f"whatsapp:instance:{name}", f"evosaga:filled:{name}")
    assert (await house.deliver(name, "messages.upsert", MESSAGE)).json() == {"status": "queued"}
    assert await house.redis.exists(f"whatsapp:instance:{name}")


async def test_a_late_message_of_an_integration_that_had_the_name_before_reaches_nobody(
    house: House,
) -> None:
    ring = KeyRing([SECRET])
    first, second = (create(channel="EVOLUTION", instance_name="reused-name") for _ in range(2))
    tokens = [ring.webhook_token(uuid.UUID(c["id"]), ring.current) for c in (first, second)]
    removal = delete("reused-name")
    for command in (first, removal, second):
        await publish(house.redis, command)
        assert (await outcome(house.pool, command["id"], 30)).status == "completed"
    late = await house.deliver("reused-name", "messages.upsert", MESSAGE, token=tokens[0])
    assert (late.status_code, late.json()) == (200, {"status": "ignored"})
    now = await house.deliver("reused-name", "messages.upsert", MESSAGE, token=tokens[1])
    assert now.json() == {"status": "queued"}
    ((_, entry),) = await entries(house.redis, "wa:events")
    assert entry[b"organization_id"].decode() == second["data"]["organization_id"]


@pytest.mark.fault("w5")
async def test_a_message_during_the_create_comes_again(house: House) -> None:
    house.evolution.arm("slow_after", operation="create", seconds=1)
    command = create(channel="EVOLUTION")
    name = f"wa-{command['id']}"
    await publish(house.redis, command)

    await eventually(lambda: name in house.evolution.live())
    early = await house.deliver(name, "messages.upsert", MESSAGE)
    assert (early.status_code, early.json()["code"]) == (503, "unavailable")
    await outcome(house.pool, command["id"])
    assert (await house.deliver(name, "messages.upsert", MESSAGE)).json() == {"status": "queued"}
