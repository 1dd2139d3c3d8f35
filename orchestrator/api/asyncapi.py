"""AsyncAPI 3 document of both streams and the channels in Redis, made from the models."""

from importlib.metadata import version
from typing import Any, Final, get_args

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from evosaga.events import streams
from evosaga.events.model import SagaEvent
from evosaga.orchestrator.api import schemas, static_documents
from evosaga.orchestrator.api.commands import EXAMPLE, SCHEMA
from evosaga.orchestrator.api.openapi import plain
from evosaga.orchestrator.commands.control import STEERING, ControlCommand
from evosaga.orchestrator.whatsapp.webhooks import wa_events
from evosaga.sagas.registry import SagaRegistry
from evosaga.sagas.whatsapp.steps.notify_workers import ADDED, REMOVED

router: Final = APIRouter(tags=["operations"])

_TEXT: Final[dict[str, Any]] = {"type": "string"}
_UUID: Final[dict[str, Any]] = {"type": "string", "format": "uuid"}
_TIME: Final[dict[str, Any]] = {"type": "string", "format": "date-time"}
_WHATSAPP_SAID: Final = (
    "What Evolution's webhooks tell that is not ours to apply, messages above all, with the clinic "
    "it belongs to. `instance_name`, `clinic_id` (empty: none), `organization_id` and `event` are "
    "fields of the entry, too, so that a router need not read the JSON."
)
_OMITTED_SAID: Final = (
    "how many texts of a webhook of more than 1 MiB were too long; `[omitted: … bytes, sha256:…]` "
    "stands in their place"
)


@router.get(
    "/asyncapi.json",
    summary="AsyncAPI of the streams",
    operation_id="getAsyncApi",
    openapi_extra={"security": []},
)
async def asyncapi(request: Request) -> Response:
    """What to publish on `evosaga:commands`, and all that comes out of it over Redis."""
    return static_documents.answer(
        request,
        await static_documents.document(request, static_documents.ASYNCAPI),
        "application/json",
    )


def document(registry: SagaRegistry, prefix: str = "") -> dict[str, Any]:
    """The whole document, without references to other documents.

    ``prefix`` is the prefix of every name in this Redis.
    """
    commands, events = _commands(registry), _events() | _notices()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "evosaga",
            "version": version("evosaga"),
            "description": "Redis streams and pub/sub channels. Every message is JSON; in a stream "
            "it is the field `data` of the entry.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"redis": {"host": "EVOSAGA_REDIS_URL", "protocol": "redis"}},
        "channels": {
            "commands": _channel(
                prefix + streams.COMMANDS, "Commands, from any language: one XADD.", commands
            ),
            "dead": _channel(
                prefix + streams.DEAD_COMMANDS,
                "Commands that could not be obeyed, and why.",
                ["deadLetter"],
            ),
            "events": _channel(
                prefix + streams.EVENTS,
                "What happened: at least once, in order for each saga.",
                events,
            ),
            "whatsapp": _channel(prefix + wa_events.STREAM, _WHATSAPP_SAID, ["whatsappEvent"]),
            "added": _channel(prefix + ADDED, "Pub/sub: an instance is there.", ["instance"]),
            "removed": _channel(prefix + REMOVED, "Pub/sub: an instance is gone.", ["instance"]),
        },
        "operations": {
            "obeyCommand": _operation("receive", "commands"),
            "buryCommand": _operation("send", "dead"),
            "tellEvent": _operation("send", "events"),
            "handOnWhatsapp": _operation("send", "whatsapp"),
            "announceAdded": _operation("send", "added"),
            "announceRemoved": _operation("send", "removed"),
        },
        "components": {"messages": commands | events | _others()},
    }


def _commands(registry: SagaRegistry) -> dict[str, Any]:
    """One message for each command that clients may send."""
    inputs: dict[str, type[BaseModel]] = dict.fromkeys(sorted(STEERING), ControlCommand)
    inputs |= {name: saga.input for name, saga in registry.public.items()}
    return {
        _key(name): _message(
            name, _command(name, model), EXAMPLE if name == EXAMPLE["type"] else None
        )
        for name, model in inputs.items()
    }


def _command(name: str, model: type[BaseModel]) -> dict[str, Any]:
    given = SCHEMA["properties"] | {"type": {"const": name}, "data": _schema(model)}
    return SCHEMA | {"title": name, "properties": given}


def _events() -> dict[str, Any]:
    """One message for each event, without its private fields."""
    found = {}
    for model in get_args(SagaEvent):
        name = model.model_fields["type"].default
        data = _schema(model)
        hidden = model.PRIVATE | {"type"}
        data["properties"] = {k: v for k, v in data["properties"].items() if k not in hidden}
        data["required"] = [k for k in data.get("required", []) if k not in hidden]
        data["properties"] |= {
            "saga": {"type": "string"},
            "version": {"type": "integer"},
            "organization_id": {"type": "string", "format": "uuid"},
        }
        data.pop("additionalProperties", None)
        payload = _cloud_event(name, data, "{saga_id}:{sequence}", "the saga's id")
        found[_key(name)] = _message(name, payload, None)
    return found


def _notices() -> dict[str, Any]:
    """One message for each notice: a change of an integration outside any saga."""
    about: dict[str, Any] = {
        "integration_id": _UUID,
        "organization_id": _UUID,
        "instance_name": _TEXT,
    }
    changed: dict[str, Any] = {"status": _TEXT, "before": _TEXT}
    more: dict[str, Any] = {"state": _TEXT, "reason": {"type": "integer"}}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "integration.connected": (changed, more),
        "integration.disconnected": (changed, more),
        "integration.qr_updated": ({"available": {"type": "boolean"}}, {}),
        "integration.alert": ({"status": _TEXT, "state": _TEXT, "since": _TIME}, more),
    }
    found = {}
    for name, (always, sometimes) in kinds.items():
        data = {
            "type": "object",
            "required": [*about, *always],
            "properties": about | sometimes | always,
        }
        payload = _cloud_event(
            name, data, "{integration_id}:notice:{number}", "the integration's id"
        )
        found[_key(name)] = _message(name, payload, None)
    return found


def _cloud_event(name: str, data: dict[str, Any], id_: str, subject: str) -> dict[str, Any]:
    text = _TEXT
    return {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": _TEXT | {"description": f"{id_}; deduplicate by it"},
            "source": {"const": "/evosaga"},
            "type": {"const": name},
            "subject": _UUID | {"description": subject},
            "time": _TIME,
            "datacontenttype": {"const": "application/json"},
            "correlationid": text,
            "causationid": text,
            "traceparent": text | {"description": "where traces are made: its saga's span"},
            "epoch": {
                "type": "integer",
                "minimum": 1,
                "description": "how often the log has lost its end, left out before the first time;"
                " an id that comes again in a higher epoch replaces the older event",
            },
            "data": data,
        },
    }


def _others() -> dict[str, Any]:
    text, uuid = _TEXT, _UUID
    instance = {
        "type": "object",
        "required": ["instance_name", "organization_id", "clinic_id", "saga_id", "at"],
        "properties": {
            "instance_name": text,
            "organization_id": uuid,
            "clinic_id": {"type": ["string", "null"]},
            "saga_id": uuid,
            "at": _TIME,
        },
    }
    letter = {
        "type": "object",
        "description": "Fields of the entry, not JSON; `data` is the message as it came.",
        "properties": dict.fromkeys(("data", "code", "message", "deliveries", "message_id"), text),
    }
    example = {
        "instance_name": schemas.INSTANCE,
        "organization_id": schemas.ORGANIZATION_ID,
        "clinic_id": schemas.CLINIC_ID,
        "saga_id": schemas.SAGA_ID,
        "at": "2026-01-07T09:30:00.123456+00:00",
    }
    return {
        "instance": _message("instance", instance, example),
        "deadLetter": _message("dead letter", letter, None),
        "whatsappEvent": _message("WhatsApp event", _whatsapp_event(), None),
    }


def _whatsapp_event() -> dict[str, Any]:
    routing = {
        "instance_name": _TEXT,
        "clinic_id": {"type": ["string", "null"]},
        "organization_id": _UUID,
        "event": _TEXT,
    }
    return {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": _TEXT | {"description": "the same for the same webhook; deduplicate by it"},
            "source": _TEXT | {"description": "/evosaga/evolution/{instance_name}"},
            "type": _TEXT | {"description": "Evolution's name of the event: messages.upsert, say"},
            "subject": _TEXT | {"description": "the instance's name"},
            "time": _TIME,
            "datacontenttype": {"const": "application/json"},
            "omitted": {"type": "integer", "description": _OMITTED_SAID},
            "data": {
                "type": "object",
                "description": "what Evolution told, and whose it is",
                "required": list(routing),
                "properties": routing,
            },
        },
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with its definitions inlined."""
    schema: dict[str, Any] = plain(model.model_json_schema())
    definitions = schema.pop("$defs", {})

    def placed(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return placed(definitions[part["$ref"].rpartition("/")[2]])
            return {key: placed(value) for key, value in part.items()}
        return [placed(item) for item in part] if isinstance(part, list) else part

    placed_schema: dict[str, Any] = placed(schema)
    return placed_schema


def _message(name: str, payload: dict[str, Any], example: dict[str, Any] | None) -> dict[str, Any]:
    examples = {"examples": [{"name": name, "payload": example}]} if example else {}
    return {"name": name, "payload": payload, **examples}


def _channel(address: str, said: str, messages: Any) -> dict[str, Any]:
    return {
        "address": address,
        "description": said,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }


def _operation(action: str, channel: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}}


def _key(name: str) -> str:
    """``step.failed`` as ``stepFailed``: component names may not contain a dot."""
    first, *rest = name.replace("_", ".").split(".")
    return first + "".join(word.capitalize() for word in rest)
