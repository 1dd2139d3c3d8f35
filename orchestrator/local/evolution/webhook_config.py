"""The webhook of an instance: configured by create, or set and read later."""

from typing import Any
from uuid import uuid4

from evosaga.orchestrator.local.evolution.clock import timestamp
from evosaga.orchestrator.local.evolution.guards import NO_PARENT_ROW, Call, Refused, Reply
from evosaga.orchestrator.local.evolution.instances import Row, World
from evosaga.orchestrator.local.evolution.webhooks import EVENTS

_TYPES: dict[str, tuple[type, str]] = {
    "enabled": (bool, "boolean"),
    "url": (str, "string"),
    "headers": (dict, "object"),
    "byEvents": (bool, "boolean"),
    "base64": (bool, "boolean"),
    "events": (list, "array"),
}
NO_EVENTS = "Cannot read properties of undefined (reading 'length')"


def subscribe(row: Row, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """Event names are not checked here, and an empty list means all events."""
    if not wanted:
        return {}
    if "events" not in wanted:
        raise Refused(400, [NO_EVENTS])
    row.webhook = webhook_row(row.id, {"enabled": True, **wanted})
    names = {
        "webhookUrl": "url",
        "webhookHeaders": "headers",
        "webhookByEvents": "byEvents",
        "webhookBase64": "base64",
    }
    return {shown: wanted[given] for shown, given in names.items() if given in wanted}


def webhook_row(instance_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The Webhook row: a disabled one keeps no events, an empty list becomes all 31."""
    events = (wanted["events"] or list(EVENTS)) if wanted["enabled"] else []
    at = timestamp()
    return {
        "id": str(uuid4()),
        "url": wanted.get("url", ""),
        "headers": wanted.get("headers"),
        "enabled": wanted["enabled"],
        "events": events,
        "webhookByEvents": bool(wanted.get("byEvents", False)),
        "webhookBase64": bool(wanted.get("base64", False)),
        "createdAt": at,
        "updatedAt": at,
        "instanceId": instance_id,
    }


async def webhook_set(world: World, call: Call) -> Reply:
    if wrong := _wrong_with(call.body):
        raise Refused(400, [wrong])
    wanted = call.body["webhook"]
    world.ask_database(call)
    row = world.rows.get(call.name)
    if call.name not in world.memory or row is None:
        raise Refused(500, NO_PARENT_ROW)
    if wanted["enabled"] and "events" not in wanted:
        raise Refused(500, NO_EVENTS)
    fresh = webhook_row(row.id, wanted)
    if row.webhook is not None:
        fresh |= {"id": row.webhook["id"], "createdAt": row.webhook["createdAt"]}
        if "headers" not in wanted:
            fresh["headers"] = row.webhook["headers"]  # the previous ones
    row.webhook = fresh
    call.applied, call.instance_id = "webhook_set", row.id
    return Reply(201, fresh)


def _wrong_with(body: dict[str, Any]) -> list[str]:
    wanted = body.get("webhook")
    if wanted is None:
        return ['instance requires property "webhook"']
    if wrong := wrong_types(wanted):
        return wrong
    if missing := [field for field in ("enabled", "url") if field not in wanted]:
        return [f'webhook requires property "{field}"' for field in missing]
    return [
        f"webhook.events[{index}] is not one of enum values: {','.join(EVENTS)}"
        for index, event in enumerate(wanted.get("events", ()))
        if event not in EVENTS
    ]


def wrong_types(wanted: object) -> list[str]:
    if not isinstance(wanted, dict):
        return ["webhook is not of a type(s) object"]
    return [
        f"webhook.{field} is not of a type(s) {called}"
        for field, (kind, called) in _TYPES.items()
        if field in wanted and not isinstance(wanted[field], kind)
    ]


async def webhook_find(world: World, call: Call) -> Reply:
    world.ask_database(call)
    row = world.rows.get(call.name)
    return Reply(200, row.webhook if row is not None else None)
