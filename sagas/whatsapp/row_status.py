"""What a row of ``healthcare.integrations`` says after Evolution was looked at. Pure.

The one place of these rules. A look happens in three situations: after a webhook or while a phone
is paired (``after_observation``), in the health check, which remembers earlier looks
(``after_check``), and in a repair (``after_repair``). None of them touches a row that is being
deleted.
"""

from typing import Final, Literal, TypeAlias

ConnectionHealth: TypeAlias = Literal[
    "connected",
    "pending",
    "connecting",
    "down",
    "needs_qr",
    "banned",
    "missing",
    "half",
    "foreign",
    "incomplete",
]
"""How a connection is; ``orchestrator.whatsapp.health.connection_state`` explains each."""
RowStatus: TypeAlias = Literal["connected", "disconnected"]

FINAL_CODES: Final = frozenset({401, 402, 403, 406})
"""WhatsApp's codes after which Evolution does not reconnect."""
BANS: Final = frozenset({402, 403})
"""Of these, a ban: 402 for a time, 403 for good or until the number's owner has settled it."""
FINAL: Final = frozenset({"needs_qr", "banned"})
_NEVER_PAIRED: Final = frozenset({"pending", "connecting", "down"}) | FINAL
"""In these an instance that was never paired goes on waiting for its phone."""


def ended(reason: int | None) -> Literal["needs_qr", "banned"]:
    """How a connection is that ended for good: with a ban, or by a log-out."""
    return "banned" if reason in BANS else "needs_qr"


def after_observation(status: str, *, paired: bool, over: bool) -> str:
    """After a single look. ``over``: the connection is closed and not being taken up again.

    A connection that breaks is taken up again by Evolution itself most of the time; whether that
    takes too long is for the health check to say.
    """
    if status == "deleting":
        return status
    if paired:
        return "connected"
    return "disconnected" if over and status == "connected" else status


def after_check(
    status: str, state: ConnectionHealth, *, sure: bool, new_number: bool
) -> RowStatus | None:
    """After a health check; None: the row stays as it is.

    ``sure``: enough looks in a row agree. ``new_number``: the row has another phone number.
    """
    if state == "connected":
        return "connected" if status != "connected" or new_number else None
    if status == "disconnected" or (status != "connected" and state in _NEVER_PAIRED):
        return None
    return "disconnected" if sure or state in FINAL else None


def after_repair(seen: str) -> RowStatus:
    """After a repair has seen the instance: open, closed, half, missing or foreign."""
    return "connected" if seen == "open" else "disconnected"


def health_after_repair(seen: str) -> str:
    """The connection's state that is recorded beside the row then."""
    return {"open": "connected", "closed": "down"}.get(seen, seen)


def number_to_write(known: str | None, phone: str | None) -> str | None:
    """The phone's number in digits, when the row has another one or none."""
    digits = "".join(filter(str.isdigit, known or ""))
    return phone if phone and phone != digits else None
