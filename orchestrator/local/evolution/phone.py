"""The WhatsApp side: QR codes, pairing, disconnects and reconnects.

An instance's state is ``close``, ``connecting`` (shows a QR, or reconnects) or ``open``. A final
code ends the session and reports it; any other is followed by a silent reconnect, without a pause
between tries (2.3.x), so that an unreachable WhatsApp makes a hot loop.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Any

from evosaga.orchestrator.local.evolution import qr
from evosaga.orchestrator.local.evolution.clock import timestamp

if TYPE_CHECKING:
    from evosaga.orchestrator.local.evolution.instances import Instance, World

FINAL_CODES = {
    401: "Unauthorized",  # logged out on the phone
    402: "Payment Required",
    403: "Forbidden",  # banned
    406: "Not Acceptable",
}
PASSING_CODES = frozenset({408, 411, 428, 440, 500, 503, 515})

FIRST_QR = 0.5  # a guess: WhatsApp's own timing was not observed
QR_LIFE = 45.0
QRS_PER_SOCKET = 6
OPENING = 0.3
#: connectionStatus is the database's copy and is written this much later.
DATABASE_LAG = 0.03
#: 326 to 600 turns were counted in 9 s. A rate, so ``pace`` does not scale it.
HOT_LOOP_TURN = 0.02
#: With a small ``pace`` QR codes must not make a hot loop in the simulator.
SHORTEST_QR_LIFE = 0.25


def connect(world: "World", instance: "Instance", number: str | None = None) -> None:
    """Open a socket: a paired instance reconnects, another shows QR codes."""
    hang_up(world, instance)
    instance.state = "connecting"
    if number:
        instance.pairing_code = qr.new_pairing_code(world.random)
    if instance.socket is not None and not instance.socket.done():
        return  # the hot loop is still running
    instance.socket = world.spawn(_sockets(world, instance))


def hang_up(world: "World", instance: "Instance") -> None:
    """Close the socket; the hot loop of an unreachable WhatsApp cannot be stopped (2.3.x)."""
    if instance.socket is not None and world.reachable:
        instance.socket.cancel()
        instance.socket = None


def qr_answer(instance: "Instance") -> dict[str, object]:
    """The QR for create and connect; a paired instance that reconnects still shows its old one."""
    if instance.code is None:
        return {"count": 0}
    return {
        "pairingCode": instance.pairing_code,
        "code": instance.code,
        "base64": qr.png_data_url(instance.code),
        "count": instance.qrs_shown,
    }


def pair(world: "World", instance: "Instance", jid: str, profile_name: str) -> None:
    """The phone scanned the QR: WhatsApp closes with 515, a silent reconnect, then open."""
    if instance.state != "connecting" or instance.code is None:
        raise ValueError(f"{instance.name} shows no QR to scan (it is {instance.state})")
    hang_up(world, instance)
    instance.session = True
    instance.owner_jid = jid if "@" in jid else f"{jid}@s.whatsapp.net"
    instance.profile_name = profile_name
    instance.profile_picture = f"https://pps.whatsapp.net/v/{jid.partition('@')[0]}.jpg"
    _update(world, instance, "connecting")
    _open(world, instance)


def lose(world: "World", instance: "Instance", code: int) -> None:
    """The connection ends with this code; 401 is a log-out on the phone."""
    if code in FINAL_CODES:
        end_session(world, instance, code)
    elif code in PASSING_CODES:
        connect(world, instance)
    else:
        known = sorted({*FINAL_CODES, *PASSING_CODES})
        raise ValueError(f"code must be one of {known}, not {code}")


def end_session(world: "World", instance: "Instance", code: int = 401) -> None:
    """Logged out for good: the session is gone, row and phone number stay."""
    hang_up(world, instance)
    instance.state = "close"
    instance.session = False
    at = timestamp()
    reason = _reason(code, at)
    name = instance.name
    gone = {"disconnectionAt": at, "disconnectionReasonCode": code, "disconnectionObject": reason}
    world.webhooks.tell_soon(
        name, "status.instance", {"instance": name, "status": "closed", **gone}
    )
    world.webhooks.tell_soon(name, "logout.instance", None)
    _tell(world, instance, "close", code)
    _store(
        world,
        instance,
        connection_status="close",
        session=False,
        reason_code=code,
        reason=reason,
        disconnected_at=at,
    )


def is_dead(instance: "Instance") -> bool:
    """Paired, but without a socket: a log-out cannot reach WhatsApp."""
    return instance.session and instance.state != "open"


async def _sockets(world: "World", instance: "Instance") -> None:
    """Open sockets one after another, until one opens or the QR limit is reached."""
    while True:
        _update(world, instance, "connecting")
        if not world.reachable:
            await asyncio.sleep(HOT_LOOP_TURN / 2)
            instance.state = "close"
            await asyncio.sleep(HOT_LOOP_TURN / 2)
        elif instance.session:
            await world.wait(OPENING)
            return _open(world, instance)
        elif await _show_qrs(world, instance):
            return None


async def _show_qrs(world: "World", instance: "Instance") -> bool:
    """Six codes, 45 s each, then WhatsApp ends it (408). True at the limit of all codes."""
    await world.wait(FIRST_QR)
    if instance.qr_withheld is not None:
        await asyncio.sleep(instance.qr_withheld)
        instance.qr_withheld = None
    for _ in range(QRS_PER_SOCKET):
        if instance.qrs_shown >= world.settings.qrcode_limit:
            _give_up(world, instance)
            return True
        instance.code = qr.new_code(world.random)
        instance.qrs_shown += 1
        if world.webhooks.wanted(instance.name, "qrcode.updated"):
            shown = qr_answer(instance)
            del shown["count"]
            data = {"qrcode": {"instance": instance.name, **shown}}
            world.webhooks.tell_soon(instance.name, "qrcode.updated", data)
        await asyncio.sleep(max(QR_LIFE * world.settings.pace, SHORTEST_QR_LIFE))
        if not world.reachable:
            return False
    return False


def _give_up(world: "World", instance: "Instance") -> None:
    """The limit: memory says close, the database still says connecting."""
    message = {"message": "QR code limit reached, please login again", "statusCode": 500}
    world.webhooks.tell_soon(instance.name, "qrcode.updated", message)
    _tell(world, instance, "refused", 428)
    instance.state = "close"
    instance.code = instance.pairing_code = None
    instance.qrs_shown = 0
    instance.socket = None


def _open(world: "World", instance: "Instance") -> None:
    instance.state = "open"
    instance.socket = None
    _tell(
        world,
        instance,
        "open",
        200,
        wuid=instance.owner_jid,
        profileName=instance.profile_name,
        profilePictureUrl=instance.profile_picture,
    )
    _store(
        world,
        instance,
        connection_status="open",
        session=True,
        owner_jid=instance.owner_jid,
        profile_name=instance.profile_name,
        profile_picture=instance.profile_picture,
    )


def _update(world: "World", instance: "Instance", state: str) -> None:
    instance.state = state
    _tell(world, instance, state, 200)
    if not instance.session:  # a paired instance that reconnects stays "open" in the database
        _store(world, instance, connection_status=state)


def _tell(
    world: "World", instance: "Instance", state: str, reason: int, **more: str | None
) -> None:
    data = {"instance": instance.name, "state": state, "statusReason": reason, **more}
    world.webhooks.tell_soon(instance.name, "connection.update", data)


def _store(world: "World", instance: "Instance", **changes: Any) -> None:
    """Write to the instance's row, a little later; without a row nothing is written."""

    def write() -> None:
        row = world.rows.get(instance.name)
        if row is not None and row.id == instance.id:
            for column, value in changes.items():
                setattr(row, column, value)
            row.updated_at = timestamp()

    asyncio.get_running_loop().call_later(DATABASE_LAG * world.settings.pace, write)


def _reason(code: int, at: str) -> str:
    payload = {"statusCode": code, "error": FINAL_CODES[code], "message": "Connection Failure"}
    boom = {"isBoom": True, "isServer": False, "output": {"statusCode": code, "payload": payload}}
    return json.dumps({"error": {"data": None, **boom}, "date": at}, separators=(",", ":"))
