"""Pairing a phone: the current QR code, from Redis or from Evolution.

Webhooks keep the code in Redis up to date. Without them Evolution is asked, by one caller at a time
and at most every few seconds: on a closed instance its ``connect`` takes two seconds
and begins a new series of codes, on one that is pairing it shows the current code. A code lasts
45 seconds.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import RedisError

from evosaga.events.database import Pool
from evosaga.orchestrator.engine.lease import LeaseLost
from evosaga.orchestrator.whatsapp.integrations.connection import (
    PASSIVE,
    ConnectionObservation,
    Integration,
    apply_observation,
    integrations,
    observe,
)
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.models import QrCode
from evosaga.sagas.whatsapp.evolution.unconfigured import server_named
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.steps import routing_key

State: TypeAlias = Literal[
    "qr",
    "paired",
    "not_yet",
    "limit_reached",
    "reconnecting",
    "not_needed",
    "absent",
    "unavailable",
]
_FRESH_SECONDS: Final = 20.0
"""A code that has been in Redis longer than that is worth asking Evolution for a newer one."""
_ASK_EVERY: Final = 3.0
"""Seconds between two requests to Evolution for one instance, from all callers together."""
_POLL: Final = 0.1

_SAYS: Final[dict[State, str]] = {
    "qr": "scan it with WhatsApp on the phone (Linked devices)",
    "paired": "the phone is connected",
    "not_yet": "Evolution has no QR code yet; ask again in a few seconds",
    "limit_reached": "Evolution has shown all its QR codes and stopped; ask for a new series",
    "reconnecting": "a phone is paired and Evolution is reconnecting to it; no QR code is needed",
    "not_needed": "this channel has no phone to pair",
    "absent": "Evolution has no such instance of ours",
    "unavailable": "Evolution does not answer clearly at the moment; ask again in a while",
}


@dataclass(frozen=True, slots=True)
class Pairing:
    """How far it is. ``qr`` is there when ``state`` is ``qr``; ``message`` says what to do."""

    state: State
    message: str
    qr: QrCode | None = field(default=None, repr=False)


async def current_qr(
    pool: Pool,
    redis: Redis,
    servers: Mapping[str, EvolutionApi] | None,
    keys: KeyRing | None,
    instance_name: str,
    *,
    number: str | None = None,
    again: bool = False,
    watching: bool = False,
) -> Pairing:
    """The QR code of the moment, or why there is none.

    ``number`` asks for a pairing code as well, which Evolution gives when pairing begins.
    ``again``: a person wants a new series of codes although the last one was shown to its end.
    ``watching``: look at the instance even while there is a code, so that a scan is seen without
    webhooks; to be called about once a second then. Without ``servers`` only Redis is read. What
    is seen of the connection is written to the row. Raises what Postgres raises; Redis may be
    down.
    """
    integration = await _integration(pool, instance_name)
    if isinstance(integration, Pairing):
        return integration
    code, age = await _kept(redis, instance_name)
    complete = code is not None and (number is None or bool(code["pairing_code"]))
    fresh = complete and age < _FRESH_SECONDS
    if integration.status != "connected" and fresh and not watching:
        return _show(code)
    if servers is None or keys is None:
        return _without_evolution(integration, code)
    evolution = server_named(servers, integration.server)
    try:
        seen = await observe(evolution, keys, integration)
        await apply_observation(pool, integration, seen)
        if (settled := _settled(integration, seen, code, fresh=fresh)) is not None:
            return settled
        if await _limit_reached(redis, instance_name, again):
            return _say("limit_reached")
        return await _ask(redis, evolution, integration, seen, number, code)
    except LeaseLost:  # the worker of this process was cut off from Postgres a moment ago
        return _show(code) if code else _say("unavailable")


async def _integration(pool: Pool, instance_name: str) -> Integration | Pairing:
    """The integration whose phone is to be paired, or why there is nothing to pair."""
    found = await integrations(pool, names=[instance_name])
    if not found:
        return _say("absent", f"no integration has the instance {instance_name}")
    if found[0].status == "deleting":
        return _say("absent", f"{instance_name} is being deleted")
    return _say("not_needed") if found[0].channel == PASSIVE else found[0]


def _settled(
    integration: Integration, seen: ConnectionObservation, code: QrCode | None, *, fresh: bool
) -> Pairing | None:
    """What the look and the code in Redis settle; None when Evolution must be asked for a code."""
    if (settled := _seen(integration, seen)) is not None:
        return settled
    if seen.state == "unknown":
        return _show(code) if code else _say("unavailable")
    return _show(code) if fresh else None


def _seen(integration: Integration, seen: ConnectionObservation) -> Pairing | None:
    """What the look settles by itself; None when a code is what is needed."""
    if seen.paired(integration.channel):
        return _say("paired")
    match seen.state:
        case "open":  # its database does not know the phone yet
            return _say("not_yet", "the phone is being linked")
        case "connecting" | "close" if seen.recorded:  # its code is the one of long ago
            return _say("reconnecting")
        case "absent":
            return _say("absent")
    return None


async def _ask(
    redis: Redis,
    evolution: EvolutionApi,
    integration: Integration,
    seen: ConnectionObservation,
    number: str | None,
    held: QrCode | None,
) -> Pairing:
    """Ask Evolution, unless another caller just did: its code serves all."""
    name = integration.instance_name
    if not await _my_turn(redis, name):
        return _show(held) if held else await _wait(redis, name)
    assert seen.token is not None
    answer = await evolution.connect(name, seen.token, number)
    code = answer.qr_code if answer.status == 200 else None
    if code is None:
        return _say("unavailable" if answer.failed else "not_yet")
    try:
        await routing_key.keep_qr(redis, name, str(integration.id), code)
        await redis.delete(routing_key.qr_limit_key(name))
    except RedisError:
        pass  # no other caller will see it, but this one does
    if number and not code["pairing_code"]:
        late = "; Evolution gives a pairing code only when pairing begins, and it had begun"
        return _show(code, _SAYS["qr"] + late)
    return _show(code)


async def _my_turn(redis: Redis, instance_name: str) -> bool:
    key = f"evosaga:pairing:{instance_name}"
    try:
        return bool(await redis.set(key, "", nx=True, px=int(_ASK_EVERY * 1000)))
    except RedisError:
        return True


async def _wait(redis: Redis, instance_name: str) -> Pairing:
    """Another caller asked a moment ago: wait for its code."""
    deadline = time.monotonic() + _ASK_EVERY
    while time.monotonic() < deadline:
        await asyncio.sleep(_POLL)
        code, _ = await _kept(redis, instance_name)
        if code is not None:
            return _show(code)
    return _say("not_yet")


async def _kept(redis: Redis, instance_name: str) -> tuple[QrCode | None, float]:
    """The code in Redis and how many seconds it has been there."""
    key = routing_key.qr_key(instance_name)
    try:
        raw = await redis.get(key)
        left = await redis.pttl(key) / 1000
    except RedisError:
        return None, 0.0
    try:
        told: Any = json.loads(raw) if raw else None
    except ValueError:
        told = None
    if not isinstance(told, dict) or not told.get("code"):
        return None, 0.0
    code = QrCode(
        base64=told.get("base64"), code=told["code"], pairing_code=told.get("pairing_code")
    )
    return code, routing_key.QR_TTL - left


async def _limit_reached(redis: Redis, instance_name: str, again: bool) -> bool:
    key = routing_key.qr_limit_key(instance_name)
    try:
        if again:
            await redis.delete(key)
        return bool(await redis.exists(key))
    except RedisError:
        return False


def _without_evolution(integration: Integration, code: QrCode | None) -> Pairing:
    if integration.status == "connected":
        return _say("paired")
    if code is not None:
        return _show(code)
    cure = "set EVOSAGA_EVOLUTION_URL, EVOSAGA_EVOLUTION_API_KEY and EVOSAGA_SECRET_KEY"
    return _say("unavailable", f"there is no QR code at the moment; to ask for one, {cure}")


def _say(state: State, message: str | None = None) -> Pairing:
    return Pairing(state, message or _SAYS[state])


def _show(code: QrCode | None, message: str | None = None) -> Pairing:
    return Pairing("qr", message or _SAYS["qr"], code)
