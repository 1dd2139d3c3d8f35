"""POST /instance/create: neither idempotent nor atomic.

Between the name check and the insert there is a gap, and an insert that fails is ignored. The
instance then lives in memory without a row, the settings have no parent row, the answer is 400, and
the clean-up removes *by name*: a concurrent create that got its 201 a moment before is removed,
too.

The rows are those of the instance, of its webhook and of its settings, in this order and without a
transaction. ``kill`` and ``db_lost`` strike between them, and rows written before that stay.
"""

import re
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from evosaga.orchestrator.local.evolution import phone
from evosaga.orchestrator.local.evolution.admin import put_foreign
from evosaga.orchestrator.local.evolution.guards import (
    NO_DATABASE,
    NO_PARENT_ROW,
    Call,
    Died,
    Refused,
    Reply,
)
from evosaga.orchestrator.local.evolution.instances import (
    BAILEYS,
    BUSINESS,
    EVOLUTION,
    Instance,
    Row,
    World,
)
from evosaga.orchestrator.local.evolution.webhook_config import subscribe, wrong_types

INTEGRATIONS = (BAILEYS, BUSINESS, EVOLUTION)
NUMBER = re.compile(r"\d+[\.@\w-]+", re.ASCII)
NUMBER_PATTERN = r"^\\d+[\\.@\\w-]+"  # as JSON prints the pattern

GAP = 0.004  # between the name check and the insert
WORK = 0.014  # the rest of a plain create: 18 to 25 ms were observed
QR_WAIT = 5.0  # fixed, whether the QR comes or not


async def create(world: World, call: Call) -> Reply:
    """Create, or refuse and emit a removal of the instance that has the name by then."""
    if wrong := _wrong_with(call):
        raise Refused(400, [[wrong]])
    try:
        return await _create(world, call)
    except Refused:
        why = call.why("the clean-up of a failed create")
        if world.database_is_down(call):
            raise
        if call.named:
            world.remove_later(call.name, why, stall=call.stall)
        else:
            world.wipe_undefined(why)
        raise


@dataclass(slots=True)
class _Fate:
    """What will happen to a create after one of its rows."""

    world: World
    call: Call
    kill: dict[str, Any] | None = None
    loss: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.kill = self.world.faults.bend("kill", self.call)
        self.loss = self.world.faults.bend("db_lost", self.call)

    def behind(self, row: str) -> None:
        if self.loss is not None and self.loss["after"] == row:
            self.call.database_lost = True
            if self.loss["seconds"]:
                self.world.lose_database(self.loss["seconds"])
        if self.kill is not None and self.kill["after"] == row:
            raise Died(self.kill["down"], self.kill["warmup"])


async def _create(world: World, call: Call) -> Reply:
    body = call.body
    name = call.name if call.named else "undefined"
    integration = body.get("integration")
    if integration not in INTEGRATIONS:
        raise Refused(400, ["Invalid integration"])
    if integration == BUSINESS and not body.get("token"):
        raise Refused(400, ["token is required"])
    await world.wait(GAP)
    race = world.faults.bend("create_race", call)
    winner = race["winner"] if race else None
    if winner == "theirs":
        put_foreign(world, name, integration=EVOLUTION)

    row, instance = _born(world, name, integration, body)
    fate = _Fate(world, call)
    fate.behind("nothing")
    inserted = call.named and not world.database_is_down(call) and world.insert(row)
    world.memory[name] = instance
    call.applied = "created" if inserted else "half_created"
    call.instance_id, call.token = instance.id, instance.token
    fate.behind("instance")
    if body.get("webhook") and world.database_is_down(call):
        raise Refused(400, [NO_DATABASE])
    webhook = subscribe(row, body.get("webhook"))
    fate.behind("webhook")
    world.webhooks.tell_soon(
        name, "instance.create", {"instanceName": name, "instanceId": instance.id}
    )
    await world.wait(WORK)
    if body.get("proxyHost"):
        raise Refused(400, ["Invalid proxy"])  # the proxy test never reaches the internet
    _settings(world, row, body, call)
    fate.behind("settings")
    if integration == BUSINESS and not body.get("number"):
        raise Refused(400, ["number is required"])
    shown = await _first_qr(world, call, instance) if integration == BAILEYS else None
    if (fault := world.faults.bend("400_async_remove", call)) is not None:
        call.stall = fault["seconds"]
        raise Refused(400, [fault["message"]])
    if winner in ("ours", "half"):
        why = call.why("the failed create of a rival")
        world.remove_later(name, why, keep="memory" if winner == "half" else None)
    return Reply(201, _answer(world, row, instance, webhook, shown))


def _wrong_with(call: Call) -> str | None:
    """Schema errors; the schema does not know ``integration`` and accepts a missing name."""
    body = call.body
    if call.named and not call.name:
        return 'The "instanceName" cannot be empty'
    for field in ("token", "number", "businessId"):
        if field in body and not isinstance(body[field], str):
            return f"{field} is not of a type(s) string"
    if "qrcode" in body and not isinstance(body["qrcode"], bool):
        return "qrcode is not of a type(s) boolean"
    if "number" in body and not NUMBER.match(body["number"]):
        return f'number does not match pattern "{NUMBER_PATTERN}"'
    wrong = wrong_types(body["webhook"]) if "webhook" in body else []
    return wrong[0] if wrong else None


def _born(world: World, name: str, integration: str, body: dict[str, Any]) -> tuple[Row, Instance]:
    """The row and the memory entry of a new instance; passive ones are open at once."""
    state = "close" if integration == BAILEYS else "open"
    token = body.get("token") or str(uuid4()).upper()
    number = body.get("number")
    instance = Instance(str(uuid4()), name, integration, token, number, state)
    row = Row(
        instance.id,
        name,
        integration,
        token,
        number,
        body.get("businessId"),
        world.settings.client_name,
        state,
    )
    return row, instance


def _settings(world: World, row: Row, body: dict[str, Any], call: Call) -> None:
    """An insert whose failure is reported: it needs the parent row."""
    if world.database_is_down(call):
        raise Refused(400, [NO_DATABASE])
    if world.rows.get(row.name) is not row:
        raise Refused(400, [NO_PARENT_ROW])
    row.setting = settings_row(body)


def settings_row(body: dict[str, Any]) -> dict[str, Any]:
    """The Setting row: the fields that a caller sets."""
    return {
        "rejectCall": body.get("rejectCall") is True,
        "msgCall": body.get("msgCall") or "",
        "groupsIgnore": body.get("groupsIgnore") is True,
        "alwaysOnline": body.get("alwaysOnline") is True,
        "readMessages": body.get("readMessages") is True,
        "readStatus": body.get("readStatus") is True,
        "syncFullHistory": body.get("syncFullHistory") is True,
        "wavoipToken": body.get("wavoipToken") or "",
    }


async def _first_qr(world: World, call: Call, instance: Instance) -> dict[str, object] | None:
    """Connect and wait 5 s. A DELETE meanwhile does not change the 201 that follows."""
    if call.body.get("qrcode") is not True:
        return None
    withhold_qr(world, call, instance)
    phone.connect(world, instance, instance.number)
    await world.wait(QR_WAIT)
    return phone.qr_answer(instance)


def withhold_qr(world: World, call: Call, instance: Instance) -> None:
    if (fault := world.faults.bend("no_qr", call)) is not None:
        instance.code = None
        instance.qr_withheld = float("inf") if fault["seconds"] is None else fault["seconds"]


def _answer(
    world: World,
    row: Row,
    instance: Instance,
    webhook: dict[str, Any],
    shown: dict[str, object] | None,
) -> dict[str, object]:
    business = row.integration == BUSINESS
    answer: dict[str, object] = {
        "instance": {
            "instanceName": row.name,
            "instanceId": row.id,
            "integration": row.integration,
            "webhookWaBusiness": f"{world.url}/webhook/meta" if business else None,
            "accessTokenWaBusiness": "evolution" if business else "",
            "status": instance.state,
        },
        "hash": row.token,
        "webhook": webhook,
        "websocket": {},
        "rabbitmq": {},
        "nats": {},
        "sqs": {},
        "settings": row.setting,
    }
    if shown is not None:
        answer["qrcode"] = shown
    return answer
