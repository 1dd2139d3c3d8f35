"""What webhooks lead to over Redis is what the AsyncAPI document says, to the field."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from jsonschema_rs import Draft202012Validator

from evosaga.events import streams
from evosaga.orchestrator.api.asyncapi import document
from evosaga.orchestrator.whatsapp.health.store import ALERT
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.sagas.registry import discover
from evosaga.sagas.whatsapp import integration_events
from tests.support.driving import entries
from tests.support.waiting import eventually
from tests.whatsapp.webhooks.conftest import House


def check(said: dict[str, Any], channel: str, event: Any) -> None:
    """Raises unless one of the channel's messages describes it."""
    messages = [
        said["components"]["messages"][one["$ref"].rpartition("/")[2]]
        for one in said["channels"][channel]["messages"].values()
    ]
    fits = [m for m in messages if channel == "whatsapp" or m["name"] == event["type"]]
    assert len(fits) == 1, event["type"]
    Draft202012Validator(fits[0]["payload"]).validate(event)


async def test_notices_and_messages_are_as_described(house: House) -> None:
    name = await house.integration()
    house.evolution.pair(name, "5511988887777")
    await house.becomes(name, "connected")
    await house.deliver(name, "messages.upsert", {"key": {"id": "3EB0"}})
    house.evolution.logout(name)
    await house.becomes(name, "disconnected")
    await house.all_applied()
    told = [json.loads(f[b"data"]) for _, f in await entries(house.redis, streams.EVENTS)]
    said, seen = document(discover()), set()
    for event in told:
        check(said, "events", event)
        seen.add(event["type"])
    assert {"integration.connected", "integration.disconnected", "integration.qr_updated"} <= seen
    await eventually(lambda: house.redis.xlen(wa_events.STREAM))
    for _, fields in await entries(house.redis, wa_events.STREAM):
        check(said, "whatsapp", json.loads(fields[b"data"]))


def test_an_alert_is_as_described() -> None:
    data = {"status": "disconnected", "state": "logged_out", "since": "2026-01-07T09:30:00Z"}
    notice = integration_events.Notice(uuid4(), uuid4(), "wa-sol", ALERT, data)
    event = json.loads(
        integration_events.cloud_event(
            integration_events.RecordedNotice(1, datetime.now(UTC), notice)
        )
    )
    check(document(discover()), "events", event)
    del event["data"]["since"]
    payload = document(discover())["components"]["messages"]["integrationAlert"]["payload"]
    assert not Draft202012Validator(payload).is_valid(event)
