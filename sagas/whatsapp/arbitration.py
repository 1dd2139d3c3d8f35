"""Arbitration: which of several commands for one integration goes first. Pure.

An organization has one integration and an instance's name has one owner, so each command is
weighed against what is there and against every saga that is still open. With several Evolution
servers a name still has one owner in all of them together, since the key that routing workers read
is found by the name alone: that is stricter than one owner for each (server, name). ``RULES`` says
what becomes of a command; ``evosaga.sagas.whatsapp.admission_rules`` finds out which line applies.

    begin    the saga starts, and holds the organization's key until it is over
    wait     the saga starts *behind* an open one, and does nothing until that is over
    refuse   nothing starts; the code is for programs, the sentence for people

A delete waits, a create does not. The aim of a delete is that nothing is there in the end, and
that can be promised whatever the saga ahead does. A create that waited would hold nothing
meanwhile, and what it was asked for may be long out of date by then.

Those that wait form a queue: each is behind the last one before it, and no two are behind the
same (the database holds that). Commands of one batch are weighed in their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal
from uuid import UUID

LONGEST_QUEUE: Final = 10
"""Sagas of one organization that may wait; a caller that repeats itself meets this limit."""


def business_key(organization_id: UUID) -> str:
    """What only one open saga may hold: an organization's WhatsApp integration."""
    return f"whatsapp/evolution/{organization_id}"


class Existing(StrEnum):
    """What a command finds. Of several open sagas the parked one counts, else the last."""

    NOTHING = "nothing"
    INTEGRATION = "an integration"
    CREATE = "a create on its way"
    CREATE_UNDONE = "a create being undone"
    CREATE_PARKED = "a parked create"
    DELETE = "a delete on its way"
    DELETE_PARKED = "a parked delete"
    OTHER = "another saga on its way"
    OTHER_PARKED = "another saga, parked"
    QUEUE = "a full queue"


class Incoming(StrEnum):
    """What comes. A namesake is another organization's create that wants the same name."""

    CREATE = "create"
    NAMESAKE = "namesake"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a command; ``cancel``: the saga ahead is asked to stop, if it still can."""

    verb: Literal["begin", "wait", "refuse"]
    code: str = ""
    sentence: str = ""
    cancel: bool = False


BEGIN: Final = Rule("begin")
WAIT: Final = Rule("wait")
STOP_AND_WAIT: Final = Rule("wait", cancel=True)


def _refuse(code: str, sentence: str) -> Rule:
    return Rule("refuse", code, sentence)


def _busy(sentence: str) -> Rule:
    return _refuse("in_progress", sentence)


_TAKEN: Final = _refuse("name_taken", "another integration uses the instance name {name}")
_PARKED: Final = _busy(
    "saga {saga} ({kind}) of this organization is parked at step {step}: replay it first, as "
    "evosaga why {saga} says"
)

RULES: Final[Mapping[tuple[Existing, Incoming], Rule]] = {
    (Existing.NOTHING, Incoming.CREATE): BEGIN,
    (Existing.INTEGRATION, Incoming.CREATE): _refuse(
        "integration_exists", "WhatsApp integration already exists for this organization"
    ),
    (Existing.CREATE, Incoming.CREATE): _busy(
        "this organization's integration is being created already, by saga {saga}"
    ),
    (Existing.CREATE_UNDONE, Incoming.CREATE): _busy(
        "saga {saga} is still undoing a create of this organization: create again when it is over"
    ),
    (Existing.CREATE_PARKED, Incoming.CREATE): _PARKED,
    (Existing.DELETE, Incoming.CREATE): _busy(
        "this organization's integration is being deleted: create again when saga {saga} is over"
    ),
    (Existing.DELETE_PARKED, Incoming.CREATE): _PARKED,
    (Existing.OTHER, Incoming.CREATE): _busy(
        "saga {saga} ({kind}) is at work for this organization: create again when it is over"
    ),
    (Existing.OTHER_PARKED, Incoming.CREATE): _PARKED,
    (Existing.QUEUE, Incoming.CREATE): _busy(
        "this organization's integration is being deleted: create again when saga {saga} is over"
    ),
    **{(there, Incoming.NAMESAKE): _TAKEN for there in Existing if there is not Existing.NOTHING},
    (Existing.NOTHING, Incoming.NAMESAKE): BEGIN,
    (Existing.NOTHING, Incoming.DELETE): _refuse(
        "not_found", "no integration has the instance {name}"
    ),
    (Existing.INTEGRATION, Incoming.DELETE): BEGIN,
    (Existing.CREATE, Incoming.DELETE): STOP_AND_WAIT,
    (Existing.CREATE_UNDONE, Incoming.DELETE): WAIT,
    (Existing.CREATE_PARKED, Incoming.DELETE): _PARKED,
    (Existing.DELETE, Incoming.DELETE): WAIT,
    (Existing.DELETE_PARKED, Incoming.DELETE): _PARKED,
    (Existing.OTHER, Incoming.DELETE): WAIT,
    (Existing.OTHER_PARKED, Incoming.DELETE): _PARKED,
    (Existing.QUEUE, Incoming.DELETE): _busy(
        "enough deletes of this organization wait already; the last of them is saga {saga}"
    ),
}
