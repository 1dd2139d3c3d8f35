"""The other routes: list, state, connect, restart, log out, delete."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from evosaga.orchestrator.local.evolution import phone
from evosaga.orchestrator.local.evolution.create import create, withhold_qr
from evosaga.orchestrator.local.evolution.guards import (
    OBJECT_OBJECT,
    Call,
    Refused,
    Reply,
    failed_with_200,
)
from evosaga.orchestrator.local.evolution.instances import BAILEYS, Instance, Row, World
from evosaga.orchestrator.local.evolution.lists import shaped
from evosaga.orchestrator.local.evolution.settings import settings_find, settings_set
from evosaga.orchestrator.local.evolution.webhook_config import webhook_find, webhook_set

#: Observed shares of DELETE refusals on 2.3.7, by the state of the (Baileys) instance.
DELETE_REFUSALS = {"connecting": 9 / 20, "open": 3 / 10}
CONNECT_WAIT = 2.0
FETCH_WORK = 0.010
DELETE_WORK = 0.004


async def root(world: World, call: Call) -> Reply:
    body = {
        "status": 200,
        "message": "Welcome to the Evolution API, it is working!",
        "version": world.settings.version,
        "clientName": world.settings.client_name,
        "manager": f"{world.url}/manager",
        "documentation": "https://doc.evolution-api.com",
        "whatsappWebVersion": "2.3000.1031543708",
    }
    return Reply(200, body)


async def fetch(world: World, call: Call) -> Reply:
    """A filtered query reads memory first; the full list reads only the database."""
    await world.wait(FETCH_WORK)
    world.ask_database(call)
    by_id, by_number = call.query.get("instanceId"), call.query.get("number")
    name = call.query.get("instanceName")
    if by_id or by_number:
        found = [r for r in world.rows.values() if r.id == by_id or (r.number or "") == by_number]
        if not found:
            raise Refused(404, [f'Instance "{by_id or by_number}" not found'])
        name = found[0].name
    if call.key != world.settings.api_key:
        elements = _of_token(world, call, name)
    elif name:
        elements = _in_memory(world, [name])
    else:
        rows = [r for r in world.rows.values() if r.client_name == world.settings.client_name]
        elements = [listed(row) for row in _spoiled(world, call, rows)]
    if (fault := world.faults.bend("list_shape", call)) is not None:
        elements = [shaped(element, fault) for element in elements]
    return Reply(200, elements)


def _of_token(world: World, call: Call, name: str | None) -> list[dict[str, Any]]:
    """Every instance that has this token: tokens are not unique."""
    names = [r.name for r in world.rows.values() if r.token == call.key]
    if name and name not in names:
        raise Refused(401, "Unauthorized")
    return _in_memory(world, [name] if name else names)


def _in_memory(world: World, names: list[str]) -> list[dict[str, Any]]:
    if missing := [name for name in names if name not in world.memory]:
        raise Refused(404, [f'Instance "{", ".join(missing)}" not found'])
    return [listed(world.rows[name]) for name in names if name in world.rows]


def _spoiled(world: World, call: Call, rows: list[Row]) -> Iterable[Row]:
    if world.faults.bend("list_empty", call) is not None:
        return []
    if (fault := world.faults.bend("list_partial", call)) is not None:
        share = min(fault["keep"], 1)
        kept = world.random.sample(range(len(rows)), int(len(rows) * share))
        return [rows[index] for index in sorted(kept)]
    return rows


def listed(row: Row) -> dict[str, Any]:
    """One element of fetchInstances, with its order of fields; the token is always included."""
    setting = None
    if row.setting is not None:
        stamps = {"createdAt": row.created_at, "updatedAt": row.created_at, "instanceId": row.id}
        setting = {"id": str(uuid5(NAMESPACE_OID, row.id)), **row.setting, **stamps}
    return {
        "id": row.id,
        "name": row.name,
        "connectionStatus": row.connection_status,
        "ownerJid": row.owner_jid,
        "profileName": row.profile_name,
        "profilePicUrl": row.profile_picture,
        "integration": row.integration,
        "number": row.number,
        "businessId": row.business_id,
        "token": row.token,
        "clientName": row.client_name,
        "disconnectionReasonCode": row.reason_code,
        "disconnectionObject": row.reason,
        "disconnectionAt": row.disconnected_at,
        "createdAt": row.created_at,
        "updatedAt": row.updated_at,
        "Chatwoot": None,
        "Proxy": None,
        "Rabbitmq": None,
        "Nats": None,
        "Sqs": None,
        "Websocket": None,
        "Setting": setting,
        "_count": {"Message": 0, "Contact": 0, "Chat": 0},
    }


async def connection_state(world: World, call: Call) -> Reply:
    """The state in memory; a ghost row has no ``state`` at all."""
    instance = world.memory.get(call.name)
    state = {} if instance is None else {"state": instance.state}
    return Reply(200, {"instance": {"instanceName": call.name, **state}})


async def connect(world: World, call: Call) -> Reply:
    instance = world.memory.get(call.name)
    if instance is None:
        return failed_with_200()
    if instance.state == "open":
        return await connection_state(world, call)
    if instance.integration != BAILEYS:
        return Reply(200, {})
    if instance.state == "close":
        withhold_qr(world, call, instance)
        phone.connect(world, instance, call.query.get("number"))
        call.applied = "connecting"
        await world.wait(CONNECT_WAIT)
    return Reply(200, phone.qr_answer(instance))


async def restart(world: World, call: Call) -> Reply:
    """Closes the socket; the answer is often the state before that."""
    instance = world.memory.get(call.name)
    if instance is None or instance.state == "close":
        return failed_with_200()
    reply = await connect(world, call)
    if instance.integration == BAILEYS:
        phone.connect(world, instance)
    call.applied = "restarted"
    return reply


async def logout(world: World, call: Call) -> Reply:
    """2.3.7 waits for it, and fails when the socket is dead; 2.3.6 answers SUCCESS at once."""
    done = Reply(200, _success("Instance logged out"))
    instance = world.memory.get(call.name)
    if instance is None:
        return done
    if instance.state == "close":
        raise Refused(400, [f'The "{call.name}" instance is not connected'])
    if phone.is_dead(instance):
        if world.settings.version != "2.3.6":
            raise Refused(500, ["Error: Connection Closed"])
        return done
    _log_out(world, instance)
    call.applied = "logged_out"
    return done


def _log_out(world: World, instance: Instance) -> None:
    if instance.integration == BAILEYS:
        phone.end_session(world, instance)
    else:
        instance.state = "close"  # the database still says open


async def delete(world: World, call: Call) -> Reply:
    """200 means accepted: the removal is an event of its own, by name."""
    await world.wait(DELETE_WORK)
    instance = world.memory.get(call.name)
    old = world.settings.version == "2.3.6"
    if instance is not None and not old:
        _log_out_first(world, call, instance)
    if not world.database_is_down(call):
        row = world.rows.get(call.name)
        known = instance or row
        ids = {"instanceName": call.name, "instanceId": known.id if known else None}
        world.webhooks.tell_soon(call.name, "instance.delete", ids)
        _emit_removal(world, call)
    if instance is not None and old:
        _log_out_last(world, instance)
    return Reply(200, _success("Instance deleted"))


def _log_out_first(world: World, call: Call, instance: Instance) -> None:
    """2.3.7: a failure here ends the DELETE with 400, and its message is an object."""
    if phone.is_dead(instance):
        raise Refused(400, [OBJECT_OBJECT])
    if instance.state == "close":
        return
    refused = instance.integration == BAILEYS and _refuses(world, call, instance.state)
    _log_out(world, instance)
    call.applied = "logged_out"
    if refused:
        raise Refused(400, [OBJECT_OBJECT])


def _log_out_last(world: World, instance: Instance) -> None:
    """2.3.6 does not wait for it: with a dead socket the phone stays linked."""
    if instance.state != "close" and not phone.is_dead(instance):
        _log_out(world, instance)


def _refuses(world: World, call: Call, state: str) -> bool:
    if world.faults.bend("delete_400", call) is not None:
        return True
    share = world.settings.delete_refusal
    return world.random.random() < (DELETE_REFUSALS[state] if share is None else share)


def _emit_removal(world: World, call: Call) -> None:
    faults, why = world.faults, call.why("DELETE")
    stall = faults.bend("delete_async", call)
    keep = "row" if faults.bend("half_deleted", call) is not None else None
    world.remove_later(call.name, why, stall=stall["seconds"] if stall else 0.0, keep=keep)
    if (second := faults.bend("second_removal", call)) is not None:
        why = call.why("a second removal of the same DELETE")
        world.remove_later(call.name, why, stall=second["seconds"])


def _success(message: str) -> dict[str, object]:
    return {"status": "SUCCESS", "error": False, "response": {"message": message}}


OPERATIONS: dict[str, Callable[[World, Call], Awaitable[Reply]]] = {
    "root": root,
    "create": create,
    "fetch": fetch,
    "connectionState": connection_state,
    "connect": connect,
    "restart": restart,
    "logout": logout,
    "delete": delete,
    "webhook_set": webhook_set,
    "webhook_find": webhook_find,
    "settings_set": settings_set,
    "settings_find": settings_find,
}
