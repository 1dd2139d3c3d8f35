"""The truth table of reconciliation, as data.

A *cell* is what is true of one instance name, in a few words a store. ``RULES`` gives every cell
exactly one verdict: no cell is forgotten and no two rules claim one, which a test proves for all
of them. Whatever a rule does not mention may be anything, except that, unless it says otherwise,
it speaks of names that no saga is at work for. ``KEY_RULES`` does the same for the key in Redis.

What a verdict means is in ``evosaga.orchestrator.whatsapp.reconciliation.verdicts``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple, TypeAlias

Busy: TypeAlias = Literal["free", "busy"]
Presence: TypeAlias = Literal["absent", "half", "idle", "open", "paired", "unclear"]
"""``idle``: there and not connected; ``open``: connected, of a channel that has no phone."""
Ownership: TypeAlias = Literal["ours", "older", "posing", "stranger"]
"""``posing``: under a name of ours with a token that is not ours."""
RowSays: TypeAlias = Literal[
    "none", "pending", "connected", "unnumbered", "disconnected", "flagged", "deleting", "disabled"
]
"""``unnumbered``: connected, and the number is not the phone's. ``flagged``: known to be ill."""
Place: TypeAlias = Literal["keep", "spare", "clear", "contested"]
"""``spare``: the organization keeps another. ``clear``: it is to keep none. ``contested``: a
person must say which."""
LogSays: TypeAlias = Literal["alive", "ended", "unknown"]
KeySays: TypeAlias = Literal["none", "right", "wrong", "unreadable", "eternal"]


class Cell(NamedTuple):
    """What is true of one name. ``log`` counts only for an instance of ours."""

    busy: Busy
    sight: Presence
    whose: Ownership
    row: RowSays
    place: Place
    log: LogSays


class KeyCell(NamedTuple):
    """What is true of the routing key of one name."""

    busy: Busy
    key: KeySays
    row: Literal["none", "enabled"]


AGREE: Final = "agree"
BUSY: Final = "busy"


@dataclass(frozen=True, slots=True)
class Rule:
    """``verdict`` for every cell whose words are among ``words``; a dimension left out is free."""

    verdict: str
    words: Mapping[str, frozenset[str]]

    def covers(self, cell: NamedTuple) -> bool:
        """Whether this rule speaks of that cell."""
        said = cell._asdict()
        return all(said[dimension] in allowed for dimension, allowed in self.words.items())


def _rule(verdict: str, **words: str) -> Rule:
    split = {"busy": "free"} | words
    return Rule(verdict, {name: frozenset(said.split()) for name, said in split.items()})


_THERE = "half idle open paired"
_SEEN = f"absent {_THERE}"
_LIVE = "pending connected unnumbered disconnected flagged"
_KNOWN = "ours older"
_NOT_OURS = "posing stranger"
_SETTLED = "keep contested"
"""A row keeps its instance unless another is kept, or none is."""

RULES: Final = (
    # A saga is at work on it, or what is there is unknown.
    _rule("busy", busy="busy"),
    _rule("unanswered", sight="unclear"),
    # Disabled by a person: left alone, instance and all.
    _rule("agree", sight=_SEEN, row="disabled"),
    # A clean slate for the organization.
    _rule("cleared", sight=_SEEN, row=f"{_LIVE} deleting", place="clear"),
    # No row.
    _rule("agree", sight="absent", row="none"),
    _rule("agree", sight=_THERE, row="none", whose="stranger"),
    _rule("impostor", sight=_THERE, row="none", whose="posing"),
    _rule("unrecorded", sight=_THERE, row="none", whose="ours", log="unknown"),
    _rule(
        "cleared_instance",
        sight=_THERE,
        row="none",
        whose="ours",
        place="clear",
        log="alive ended",
    ),
    _rule("cleared_instance", sight=_THERE, row="none", whose="older", place="clear"),
    _rule(
        "orphan",
        sight=_THERE,
        row="none",
        whose="ours",
        place="keep spare contested",
        log="ended",
    ),
    _rule("rowless", sight="half", row="none", whose="ours", place="keep", log="alive"),
    _rule(
        "rowless",
        sight="half idle open",
        row="none",
        whose="ours",
        place="spare contested",
        log="alive",
    ),
    _rule(
        "row_gone", sight="idle open paired", row="none", whose="ours", place="keep", log="alive"
    ),
    _rule("duplicate", sight="paired", row="none", whose="ours", place="spare", log="alive"),
    _rule("contested", sight="paired", row="none", whose="ours", place="contested", log="alive"),
    _rule("unnamed", sight="idle open paired", row="none", whose="older", place="keep"),
    _rule("older_orphan", sight="half", row="none", whose="older", place="keep"),
    _rule("older_orphan", sight=_THERE, row="none", whose="older", place="spare"),
    _rule("contested", sight=_THERE, row="none", whose="older", place="contested"),
    # A deletion without a saga.
    _rule("deletion_left", sight="absent", row="deleting", place=f"{_SETTLED} spare"),
    _rule("deletion_stopped", sight=_THERE, row="deleting", place=f"{_SETTLED} spare"),
    # A row whose organization keeps another instance: the row will name that one.
    _rule("orphaned_row", sight="absent", row=_LIVE, place="spare"),
    _rule("superseded", sight=_THERE, row=_LIVE, place="spare", whose=_KNOWN),
    _rule("impostor", sight=_THERE, row=_LIVE, place="spare", whose=_NOT_OURS),
    # A row and its instance.
    _rule(
        "missing",
        sight="absent",
        row="pending connected unnumbered disconnected",
        place=_SETTLED,
    ),
    _rule("still_missing", sight="absent", row="flagged", place=_SETTLED),
    _rule(
        "name_taken",
        sight=_THERE,
        row="pending connected unnumbered disconnected",
        place=_SETTLED,
        whose=_NOT_OURS,
    ),
    _rule("still_taken", sight=_THERE, row="flagged", place=_SETTLED, whose=_NOT_OURS),
    _rule(
        "half_there",
        sight="half",
        row="pending connected unnumbered disconnected",
        place=_SETTLED,
        whose=_KNOWN,
    ),
    _rule("still_half", sight="half", row="flagged", place=_SETTLED, whose=_KNOWN),
    _rule("agree", sight="idle", row="pending disconnected", place=_SETTLED, whose=_KNOWN),
    _rule(
        "wrong_status",
        sight="idle",
        row="connected unnumbered flagged",
        place=_SETTLED,
        whose=_KNOWN,
    ),
    _rule("agree", sight="open paired", row="connected", place=_SETTLED, whose=_KNOWN),
    _rule(
        "wrong_status",
        sight="open paired",
        row="pending unnumbered disconnected flagged",
        place=_SETTLED,
        whose=_KNOWN,
    ),
)

KEY_RULES: Final = (
    _rule("busy", busy="busy"),
    _rule("agree", key="none"),
    _rule("key_unreadable", key="unreadable"),
    _rule("key_left", key="right wrong eternal", row="none"),
    _rule("key_eternal", key="eternal", row="enabled"),
    _rule("key_wrong", key="wrong", row="enabled"),
    _rule("agree", key="right", row="enabled"),
)


@cache
def verdict_of(cell: Cell) -> str:
    """The verdict's code, ``agree`` or ``busy``."""
    return next(rule.verdict for rule in RULES if rule.covers(cell))


@cache
def judge_key(cell: KeyCell) -> str:
    """The same for the routing key."""
    return next(rule.verdict for rule in KEY_RULES if rule.covers(cell))
