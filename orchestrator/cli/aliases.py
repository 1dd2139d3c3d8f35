"""Verbs under the name of what they are about, and ``help VERB``: other words for the same calls.

``evosaga sagas list`` is ``evosaga list``. Words are replaced before they are parsed, so both have
the same options and the same help.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from evosaga.events.statuses import ALIASES
from evosaga.orchestrator.cli.errors import WRONG, CliError

GROUPS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "sagas": {
        "list": ("list",),
        "show": ("status",),
        "why": ("why",),
        "events": ("events",),
        "replay": ("replay",),
        "cancel": ("cancel",),
    },
    "integrations": {
        "create": ("create",),
        "delete": ("delete",),
        "qr": ("qr",),
        "health": ("health",),
    },
    "drifts": {"list": ("reconcile",), "repair": ("reconcile", "--fix")},
    "dead-letters": {
        "list": ("letters",),
        "remove": ("letters", "--remove"),
        "send": ("letters", "--send-again"),
    },
}
_FLAGS: Final = frozenset({"--json", "-j", "--debug"})
_ALIKE: Final = 0.6


def resolved(words: Sequence[str], verbs: Sequence[str]) -> list[str]:
    """The words with today's names in them. Raises ``CliError`` for an unknown one of a group.

    ``verbs`` are those that there are, groups among them that have verbs of their own.
    """
    words = _with_known_statuses(words)
    at = next((n for n, word in enumerate(words) if word not in _FLAGS), len(words))
    before, rest = list(words[:at]), list(words[at:])
    if rest[:1] == ["help"]:
        rest = _asked(rest[1:])
    group = GROUPS.get(rest[0]) if rest else None
    if group is None:
        return before + rest
    name, second = rest[0], rest[1] if len(rest) > 1 else "--help"
    if second in group:
        return [*before, *group[second], *rest[2:]]
    alike = difflib.get_close_matches(second, group, 1, _ALIKE)
    if name in verbs and (second.startswith("-") or not alike):
        return before + rest
    raise CliError(WRONG, _unknown(name, second, group))


def _with_known_statuses(words: Sequence[str]) -> list[str]:
    """``--status parked`` is ``--status failed``: other words for statuses are understood."""
    known: list[str] = []
    for before, word in pairwise(("", *words)):
        if before == "--status":
            known.append(ALIASES.get(word.lower(), word))
        elif word.startswith("--status="):
            value = word.partition("=")[2]
            known.append(f"--status={ALIASES.get(value.lower(), value)}")
        else:
            known.append(word)
    return known


def _asked(about: list[str]) -> list[str]:
    """``help VERB`` as ``VERB --help``."""
    return [*about, "--help"] if about else ["--help"]


def _unknown(name: str, word: str, group: Mapping[str, object]) -> str:
    there = f"evosaga {name} {'|'.join(group)}"
    if word.startswith("-"):
        return f"name one: {there} (see `evosaga help {name} {next(iter(group))}`)"
    close = difflib.get_close_matches(word, group, 1, _ALIKE)
    meant = f", did you mean {close[0]}?" if close else ""
    return f"unknown verb '{name} {word}'{meant} (there is: {there})"
