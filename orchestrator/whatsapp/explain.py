"""What WhatsApp says of its sagas: on which Evolution server they wait, and what can be done."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from evosaga.events.database import Queryable
from evosaga.orchestrator.queries.diagnosis import span
from evosaga.orchestrator.whatsapp.health.connection_state import CURES, WELL
from evosaga.orchestrator.whatsapp.secret_keys import CURE
from evosaga.sagas.explainer import NOTHING, Explainer, Explanation, HeldStep
from evosaga.sagas.whatsapp.arbitration import CREATE_SAGA
from evosaga.sagas.whatsapp.evolution.answer_origin import cure_in
from evosaga.sagas.whatsapp.evolution.answers import MISCONFIGURED, SERVER_UNKNOWN
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER

if TYPE_CHECKING:
    from evosaga.sagas.whatsapp.evolution.circuit_breaker import BreakerState
    from evosaga.sagas.whatsapp.evolution.client import EvolutionApi

_NONE: Final[Mapping[str, "EvolutionApi"]] = MappingProxyType({})


def explainer(servers: Mapping[str, "EvolutionApi"] = _NONE) -> Explainer:
    """``servers``: Evolution's by name, as this process calls them; none where it calls none."""

    def held(step: HeldStep) -> Explanation:
        server = str(step.facts.get("server", DEFAULT_SERVER))
        known = servers.get(server)
        name = f" {server}" if len(servers) > 1 or server != DEFAULT_SERVER else ""
        trouble = _trouble(known.state, name) if known is not None else ()
        return Explanation((*trouble, *_stranded(step)), _cure(step))

    return Explainer(note, held, _phone)


def note(result: Mapping[str, Any]) -> str:
    """What is worth knowing of a step's result; empty where that is nothing."""
    if result.get("adopted"):
        return "it had happened already: found, recognised and kept"
    return _NOTES.get(result.get("note", ""), "") or _QR.get(result.get("qr", ""), "")


_NOTES: Final = {
    "removed": "the instance was removed, and seen to be gone",
    "no_effect": "it had never happened",
    "already_absent": "it was gone already",
    "not_ours": "what is there is not ours, so it was left alone",
}
_QR: Final = {
    "ready": "the QR code is ready",
    "not_yet": "no QR code yet; it can be asked for",
    "not_needed": "needs no QR code",
}


SERVER_CODES: Final = ("evolution%", SERVER_UNKNOWN)
"""Codes, as patterns of LIKE, of what is held because of the saga's Evolution server."""


def _trouble(breaker: "BreakerState", name: str) -> tuple[str, ...]:
    if breaker.reason is None:
        return ()
    return (
        f"The Evolution server{name} has been in trouble for {span(breaker.since_seconds)}: "
        f"{breaker.reason}.",
    )


def _stranded(step: HeldStep) -> tuple[str, ...]:
    """What it means for a create that no process here knows the server it was sent to."""
    if step.code != SERVER_UNKNOWN or step.saga != CREATE_SAGA:
        return ()
    if not step.undo and "evolution" in step.done:
        return ()  # the instance is there, and only its QR code is waited for
    if not step.undo and not step.in_doubt:
        return ("Nothing was sent to that server, so it can be rolled back without it.",)
    return (
        "A create was sent to that server and only a look there tells what became of it, so an "
        "undo waits for it as well; until then the organization can have no other integration.",
    )


def _cure(step: HeldStep) -> str | None:
    if step.code == MISCONFIGURED and (cure := cure_in(step.message)) is not None:
        return f"{cure}; is it well now: evosaga doctor"
    return _CURES.get(step.code)


_CURES: Final = {
    "evolution_misconfigured": "check EVOSAGA_EVOLUTION_URL, EVOSAGA_EVOLUTION_API_KEY (of a "
    "further server, EVOSAGA_EVOLUTION_SERVERS) and the server's licence: evosaga doctor",
    SERVER_UNKNOWN: "start the workers with that server in EVOSAGA_EVOLUTION_SERVERS, or if it is "
    "gone for good, with an empty one under its name; what else is on it: evosaga doctor",
    "evolution_unreachable": "is the Evolution server up? evosaga doctor",
    "evolution_unavailable": "is the Evolution server up? evosaga doctor",
    "secret_key_unknown": f"{CURE}: evosaga doctor; a worker that has the key goes on with it",
    "token_hidden": "remove the instance by hand on Evolution; this goes on by itself then",
    "list_unreadable": "look at what Evolution lists, and at its version: evosaga doctor",
    "half_there": "restart Evolution; this goes on by itself then",
}


async def _phone(pool: Queryable, saga: str, saga_id: UUID, now: datetime) -> Explanation:
    """How the phone of an integration is that a create has made, as the last check found it."""
    if saga != CREATE_SAGA:
        return NOTHING
    phone = await pool.fetchrow(
        "SELECT state, since, reason FROM evosaga.connections WHERE integration_id = $1", saga_id
    )
    if phone is None or phone["state"] in WELL:
        return NOTHING
    state, reason = phone["state"], phone["reason"]
    why = f", for WhatsApp's reason {reason}" if reason is not None else ""
    since = span((now - phone["since"]).total_seconds())
    return Explanation(
        (f"Its integration has been {state} for {since}{why}.",), CURES.get(state) or None
    )
