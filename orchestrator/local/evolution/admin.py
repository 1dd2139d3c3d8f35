"""Administrative changes to the server that do not go through its API."""

import asyncio
from copy import deepcopy
from uuid import uuid4

from evosaga.orchestrator.local.evolution import phone as whatsapp
from evosaga.orchestrator.local.evolution.clock import timestamp
from evosaga.orchestrator.local.evolution.instances import BAILEYS, EVOLUTION, Instance, Row, World
from evosaga.orchestrator.local.evolution.journal import Why


def take_away(world: World, name: str, why: Why, *, keep: str | None = None) -> None:
    """Remove an instance, or all of it except one half ("row" or "memory"), at once."""
    instance = None if keep == "memory" else world.memory.pop(name, None)
    row = None if keep == "row" else world.rows.pop(name, None)
    if instance is not None:
        whatsapp.hang_up(world, instance)
    world.journal_removal(name, why, instance, row, keep)


def put_foreign(
    world: World, name: str, *, integration: str = EVOLUTION, client_name: str | None = None
) -> Row:
    """Replace any instance of this name by one of another owner.

    With another ``client_name`` it belongs to another deployment that shares the database: its row
    blocks the name, and the list does not show it.
    """
    take_away(world, name, Why("a stranger takes the name"))
    row = Row(
        id=str(uuid4()),
        name=name,
        integration=integration,
        token=str(uuid4()).upper(),
        client_name=client_name or world.settings.client_name,
        connection_status="close" if integration == BAILEYS else "open",
        setting={},
    )
    world.insert(row)
    if row.client_name == world.settings.client_name:
        _load(world, row)
    why = Why("a stranger's create")
    world.journal.landed("created", why, name=name, instance_id=row.id, token=row.token)
    return row


def put(
    world: World,
    name: str,
    *,
    token: str | None = None,
    integration: str = BAILEYS,
    phone: str | None = None,
) -> Row:
    """Replace any instance of this name by an older one.

    With a ``phone`` (a number, or a whole WhatsApp id) it is paired and connected; without, a
    Baileys instance is closed.
    """
    take_away(world, name, Why("an older instance takes the name"))
    jid = f"{phone}@s.whatsapp.net" if phone and "@" not in phone else phone
    row = Row(
        id=str(uuid4()),
        name=name,
        integration=integration,
        token=token or str(uuid4()).upper(),
        client_name=world.settings.client_name,
        connection_status="open" if phone or integration != BAILEYS else "close",
        session=phone is not None,
        owner_jid=jid,
        setting={},
    )
    world.insert(row)
    world.memory[name] = Instance(
        id=row.id,
        name=name,
        integration=integration,
        token=row.token,
        state=row.connection_status,
        session=row.session,
        owner_jid=jid,
    )
    why = Why("put there by hand")
    world.journal.landed("created", why, name=name, instance_id=row.id, token=row.token)
    return row


def lose(world: World, row: Row, which: str) -> None:
    """Delete one of the rows that belong to an instance's row."""
    if which == "webhook":
        row.webhook = None
    else:
        row.setting = None
    why = Why(f"its {which} row is deleted by hand")
    world.journal.landed(f"{which}_lost", why, name=row.name, instance_id=row.id, token=row.token)


def hang_up(world: World, instance: Instance, code: int) -> None:
    """The connection ends without a reconnect; the phone stays linked."""
    whatsapp.hang_up(world, instance)
    instance.state = "close"
    row = world.rows.get(instance.name)
    if row is not None:
        row.connection_status = "close"
        row.reason_code = code
        row.disconnected_at = row.updated_at = timestamp()


def start_again(world: World, warm_up: float = 0.0) -> None:
    """Start the process; HTTP answers before all instances are loaded (real seconds)."""
    rows = [r for r in world.rows.values() if r.client_name == world.settings.client_name]
    if warm_up and rows:
        world.spawn(_warm_up(world, rows, warm_up / len(rows)))
        return
    for row in rows:
        _load(world, row)


def copy_of(world: World) -> dict[str, Row]:
    return deepcopy(world.rows)


def put_back(world: World, backup: dict[str, Row]) -> None:
    """Restore the database from a backup: deleted instances return, and newer ones are gone."""
    why = Why("restored from a backup")
    for name, row in world.rows.items():
        if name not in backup or backup[name].id != row.id:
            world.journal_removal(name, why, None, row, None)
    for name, row in backup.items():
        if name not in world.rows or world.rows[name].id != row.id:
            world.journal.landed("created", why, name=name, instance_id=row.id, token=row.token)
    world.rows = deepcopy(backup)


def set_reachable(world: World, reachable: bool) -> None:
    """Make WhatsApp unreachable, or reachable again; paired instances start to reconnect."""
    for instance in world.memory.values():
        if not reachable and instance.state == "open" and instance.integration == BAILEYS:
            whatsapp.connect(world, instance)
    world.reachable = reachable


async def _warm_up(world: World, rows: list[Row], each: float) -> None:
    for row in rows:
        await asyncio.sleep(each)
        if world.rows.get(row.name) is row:
            _load(world, row)


def _load(world: World, row: Row) -> None:
    """2.3.6 connects every Baileys instance at start, 2.3.7 those that were not closed."""
    instance = Instance(
        id=row.id,
        name=row.name,
        integration=row.integration,
        token=row.token,
        number=row.number,
        session=row.session,
        owner_jid=row.owner_jid,
        profile_name=row.profile_name,
        profile_picture=row.profile_picture,
    )
    world.memory[row.name] = instance
    if row.integration != BAILEYS:
        instance.state = "open"
    elif world.settings.version == "2.3.6" or row.connection_status != "close":
        whatsapp.connect(world, instance)
