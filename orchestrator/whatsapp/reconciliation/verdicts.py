"""What each drift means: its cause, its repair, and who may start the repair.

``auto`` is repaired by the schedule and by ``--fix``; ``ask`` only by ``--fix`` for a named
organization or instance, since something that cannot be had back might be lost; ``never`` is only
reported.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Policy: TypeAlias = Literal["auto", "ask", "never"]
Action: TypeAlias = Literal["remove", "delete", "correct", "adopt", "drop", "complete"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a cell means. ``cause`` and ``repair`` are sentences with a few blanks."""

    policy: Policy
    action: Action | None
    cause: str
    repair: str


_NOTHING: Final = "nothing by itself"
_COMPLETE: Final = "set its webhook and settings again"
_REMOVE: Final = "remove the instance, with its own token"

VERDICTS: Final[dict[str, Verdict]] = {
    "unanswered": Verdict(
        "never", None, "Evolution gave no clear answer about it", "look again later"
    ),
    "orphan": Verdict(
        "auto", "remove", "its saga was undone or it was deleted since, and it is there", _REMOVE
    ),
    "rowless": Verdict(
        "auto", "remove", "it is ours, has no row, and no phone is connected to it", _REMOVE
    ),
    "row_gone": Verdict(
        "ask", "adopt", "it is ours and to be kept, but its row is gone", "make the row again"
    ),
    "duplicate": Verdict(
        "ask", "remove", "it is ours and has no row; the organization keeps {kept}", _REMOVE
    ),
    "older_orphan": Verdict(
        "ask", "remove", "it is called as older code called them, and no row names it", _REMOVE
    ),
    "unnamed": Verdict(
        "ask",
        "adopt",
        "it is the one to keep, and no row of the organization names it",
        "let the row name it, or make one",
    ),
    "contested": Verdict(
        "never",
        None,
        "it is connected, and nothing says whether the organization should keep it",
        "say which one to keep: --keep NAME, or --keep none",
    ),
    "superseded": Verdict(
        "ask",
        "remove",
        "the row names it, but the organization keeps {kept}",
        "remove it once the row names the other",
    ),
    "orphaned_row": Verdict(
        "ask",
        None,
        "the row names an instance that Evolution does not have; {kept} is there",
        "it will name that one",
    ),
    "impostor": Verdict(
        "never", None, "it has a name of ours and was made by someone else", "it is not touched"
    ),
    "unrecorded": Verdict(
        "ask",
        "remove",
        "it carries our token, or one of its kind, and this database never heard of its saga: was "
        "it restored, or is there another deployment?",
        "say which: --fix --remove {name}, or --fix --organization-id UUID --keep {name}",
    ),
    "missing": Verdict(
        "auto",
        "correct",
        "the row names an instance that Evolution does not have",
        "mark the row as disconnected; the instance is not made again",
    ),
    "name_taken": Verdict(
        "auto",
        "correct",
        "an instance of someone else has the name that the row has",
        "mark the row as disconnected; the instance is not touched",
    ),
    "half_there": Verdict(
        "auto",
        "correct",
        "only half of the instance is there",
        "mark the row as disconnected; a restart of Evolution may bring the other half back",
    ),
    "still_missing": Verdict(
        "never",
        None,
        "the row names an instance that Evolution does not have, and is marked so",
        "delete it and create it anew, or bring Evolution's database back: " + _NOTHING,
    ),
    "still_taken": Verdict(
        "never",
        None,
        "an instance of someone else has the name that the row has, and the row is marked so",
        "delete it, which leaves the instance alone, and create it anew: " + _NOTHING,
    ),
    "still_half": Verdict(
        "never",
        None,
        "only half of the instance is there, and the row is marked so",
        "restart Evolution, or delete it and create it anew: " + _NOTHING,
    ),
    "wrong_status": Verdict(
        "auto", "correct", "the row says {says}, Evolution says {seen}", "let the row follow"
    ),
    "deletion_left": Verdict(
        "auto",
        "delete",
        "it was to be deleted and the instance is gone, but no saga finishes it",
        "finish the deletion",
    ),
    "deletion_stopped": Verdict(
        "ask", "delete", "it was to be deleted, and no saga does it", "finish the deletion"
    ),
    "cleared": Verdict("ask", "delete", "a clean slate was asked for", "delete the integration"),
    "cleared_instance": Verdict("ask", "remove", "a clean slate was asked for", _REMOVE),
    "named_twice": Verdict(
        "never", None, "another row names the same instance", "delete or disable one of the rows"
    ),
    "elsewhere": Verdict(
        "never",
        None,
        "an instance of that name is on Evolution server {server}, too",
        "it is not touched; find out whose it is, and remove it there by hand",
    ),
    "webhook_missing": Verdict(
        "auto", "complete", "{lacks}: its messages are delivered nowhere", _COMPLETE
    ),
    "webhook_wrong": Verdict("auto", "complete", "{lacks}", _COMPLETE),
    "settings_missing": Verdict("auto", "complete", "{lacks}", _COMPLETE),
    "key_left": Verdict(
        "auto", "drop", "a routing key is left, and no row names the instance", "drop the key"
    ),
    "key_wrong": Verdict(
        "auto", "drop", "the routing key leads to another clinic than the row", "drop the key"
    ),
    "key_unreadable": Verdict("auto", "drop", "the routing key can't be read", "drop the key"),
    "key_eternal": Verdict("auto", "drop", "the routing key never expires", "drop the key"),
}
"""Every drift there is, by its code. A dropped key is filled again by the next reader."""
