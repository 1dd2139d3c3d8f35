"""The settings of an instance: written by create, set or read later."""

from evosaga.orchestrator.local.evolution.create import settings_row
from evosaga.orchestrator.local.evolution.guards import NO_PARENT_ROW, Call, Refused, Reply
from evosaga.orchestrator.local.evolution.instances import World

_FLAGS = (
    "rejectCall",
    "groupsIgnore",
    "alwaysOnline",
    "readMessages",
    "readStatus",
    "syncFullHistory",
)
_REQUIRED = (*_FLAGS, "wavoipToken")


async def settings_set(world: World, call: Call) -> Reply:
    """Sets all of them; the row is created when it is missing."""
    wrong = [f'instance requires property "{name}"' for name in _REQUIRED if name not in call.body]
    wrong += [
        f"{name} is not of a type(s) boolean"
        for name in _FLAGS
        if name in call.body and not isinstance(call.body[name], bool)
    ]
    if wrong:
        raise Refused(400, [wrong])
    world.ask_database(call)
    row = world.rows.get(call.name)
    if call.name not in world.memory or row is None:
        raise Refused(500, NO_PARENT_ROW)
    row.setting = settings_row(call.body)
    call.applied, call.instance_id = "settings_set", row.id
    shown = {"instanceName": call.name, "instanceId": row.id, "settings": row.setting}
    return Reply(201, {"settings": shown})


async def settings_find(world: World, call: Call) -> Reply:
    """``null`` when there is no row."""
    world.ask_database(call)
    row = world.rows.get(call.name)
    return Reply(200, row.setting if row is not None else None)
