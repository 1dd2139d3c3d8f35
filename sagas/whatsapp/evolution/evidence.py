"""What the answers to a look prove about one instance: a table, read from the top.

A look asks up to three questions. The first row that fits an answer says what is there, or what has
to be asked next. (All as observed on Evolution 2.3.6 and 2.3.7.)
"""

import json
from enum import StrEnum
from typing import Final

from evosaga.sagas.whatsapp.evolution.answers import Answer, Operation, Presence, Status
from evosaga.sagas.whatsapp.evolution.models import UnreadableList


class Evidence(StrEnum):
    """What the body of an answer to a look shows of the instance that was asked for."""

    STATE = "state"
    OUR_ROW = "our row"
    THEIR_ROW = "their row"
    ROW = "a row without a token"
    LIST = "a list without it"
    UNREADABLE = "a list that can't be read to its end"
    NAME = "its name"
    NOTHING = "nothing"


_ROWS: Final = frozenset({Evidence.OUR_ROW, Evidence.THEIR_ROW, Evidence.ROW})
_ANYTHING: Final = frozenset(Evidence)

# Where a look begins, what each answer proves, and what is to be asked when it proves nothing yet.
# Tokens live in Evolution's database: without it even our own is refused. So a 401 is a stranger's
# instance only if the list says so, and only the whole list makes an absence certain.
FIRST_LOOK: Final = Operation.STATE
PRESENCE_RULES: Final[
    tuple[tuple[Operation, Status, frozenset[Evidence], Presence | Operation, str], ...]
] = (
    (
        Operation.STATE,
        200,
        frozenset({Evidence.STATE}),
        Presence.MINE,
        "Evolution answers 200 to the instance's own token",
    ),
    (
        Operation.STATE,
        200,
        frozenset({Evidence.NAME}),
        Presence.HALF,
        "Evolution knows the name, but no live instance is behind it",
    ),
    (Operation.STATE, 401, _ANYTHING, Operation.NAMED, ""),
    (Operation.STATE, 404, _ANYTHING, Operation.OWN, ""),
    (
        Operation.NAMED,
        200,
        frozenset({Evidence.OUR_ROW}),
        Presence.MINE,
        "Evolution lists the instance with our token, though it refuses that token now",
    ),
    (
        Operation.NAMED,
        200,
        frozenset({Evidence.THEIR_ROW}),
        Presence.FOREIGN,
        "Evolution lists an instance of that name with a token that is not ours",
    ),
    (
        Operation.NAMED,
        200,
        frozenset({Evidence.ROW}),
        Presence.UNKNOWN,
        "Evolution lists the instance without its token, so nothing shows whose it is",
    ),
    (
        Operation.NAMED,
        200,
        frozenset({Evidence.LIST}),
        Presence.HALF,
        "the instance is in Evolution's memory, without a row behind it",
    ),
    (
        Operation.OWN,
        404,
        frozenset({Evidence.NAME}),
        Presence.HALF,
        "our token still opens a row, but Evolution's memory has no such instance",
    ),
    (Operation.OWN, 200, _ROWS, Presence.HALF, "a row of that name is left, but no live instance"),
    (Operation.OWN, 200, _ANYTHING, Operation.LIST, ""),
    (Operation.OWN, 401, _ANYTHING, Operation.LIST, ""),
    (Operation.LIST, 200, _ROWS, Presence.HALF, "a row of that name is left, but no live instance"),
    (
        Operation.LIST,
        200,
        frozenset({Evidence.LIST}),
        Presence.ABSENT,
        "Evolution answers 404 to the name, and its whole list does not have it",
    ),
    (
        Operation.LIST,
        200,
        frozenset({Evidence.UNREADABLE}),
        Presence.UNKNOWN,
        "Evolution's list has elements without a name that can be read: it proves no absence",
    ),
)


def read_look(
    asked: Operation, answer: Answer, name: str, token: str
) -> tuple[Presence | Operation, str]:
    """What an answer to a look proves, with the evidence, or what has to be asked next."""
    shown = _shows(answer, name, token)
    looks = () if answer.alien else PRESENCE_RULES
    for question, status, shows, result, evidence in looks:
        if question is asked and status == answer.status and shown in shows:
            return result, evidence
    told = f"Evolution answers {answer.text}" if answer.sent else answer.text
    return Presence.UNKNOWN, f"{told}, which proves nothing about the instance"


def _shows(answer: Answer, name: str, token: str) -> Evidence:
    if answer.instances is not None:
        try:
            listed = answer.listed(name)
        except UnreadableList:
            return Evidence.UNREADABLE
        if listed is None:
            return Evidence.LIST
        if listed.token is None:
            return Evidence.ROW
        return Evidence.OUR_ROW if listed.token == token else Evidence.THEIR_ROW
    if answer.instance is not None and answer.instance.said:
        return Evidence.STATE
    return Evidence.NAME if name in json.dumps(answer.body) else Evidence.NOTHING
