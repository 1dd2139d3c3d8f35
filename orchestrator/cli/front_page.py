"""The page of ``evosaga --help``, and ``--version``.

Drawn without cyclopts and rich, whose imports take four times as long as everything else here.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from evosaga.orchestrator.cli.aliases import GROUPS
from evosaga.orchestrator.cli.verb_table import (
    API_KEY,
    APP,
    COMMON,
    DEBUG,
    JSON,
    PROFILE,
    SUMMARY,
    URL,
    USAGE,
    VERBS,
    WHATSAPP,
    WHATSAPP_GROUPS,
)

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.output import Output

_WIDTH: Final = 80
_NARROWEST: Final = 18
"""Columns that a description gets however narrow the window is."""
_OPTIONS: Final = (
    ("--json, -j", JSON),
    ("--debug", DEBUG),
    ("--app", APP),
    ("--url URL", URL),
    ("--api-key KEY", API_KEY),
    ("--profile NAME", PROFILE),
    ("--help, -h", "Display this message and exit."),
    ("--version", "Display application version."),
)
_BEGINNINGS: Final = (
    ("evosaga demo", "see it work"),
    ("evosaga dev", "play with it, from a second terminal"),
    ("evosaga help VERB", "an example, and the variables it needs"),
)
EXIT_CODES: Final = (
    ("0", "done"),
    (
        "1",
        "the saga did not complete (rejected, rolled back, parked, or still running when the time "
        "was over), or doctor found something bad",
    ),
    (
        "2",
        "wrong usage, input, settings or an unknown id; also a database that needs "
        "`evosaga migrate`",
    ),
    ("3", "a server can't be reached"),
    ("70", "a bug in evosaga: please report it with what it printed"),
    ("130", "interrupted by Ctrl-C; what was published goes on"),
)


def asked_for(words: Iterable[str]) -> str | None:
    """The text for words that ask for nothing but this page or the version."""
    match [word for word in words if word not in ("--json", "-j", "--debug")]:
        case [] | ["--help"] | ["-h"] | ["help"]:
            return "page"
        case ["--version"]:
            return "version"
    return None


def release() -> str:
    """What ``--version`` prints."""
    from importlib.metadata import version

    return f"evosaga {version('evosaga')}"


def show(out: Output) -> None:
    """Write the page; at a terminal the titles and names are set off."""
    bold, cyan, plain = ("\x1b[1m", "\x1b[36m", "\x1b[0m") if _colours(out) else ("", "", "")
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    lines = [f"{bold}Usage: {USAGE}{plain}", "", *_wrapped(SUMMARY, width)]
    groups: dict[str, list[tuple[str, str]]] = {}
    hidden = WHATSAPP if without_whatsapp() else frozenset[str]()
    for verb in VERBS:
        if verb.work.partition(":")[0] not in hidden:
            groups.setdefault(verb.group, []).append((verb.name, verb.sentence))
    groups[COMMON] = list(_OPTIONS)
    for title, rows in groups.items():
        lines += ["", f"{bold}{title}:{plain}"]
        column = max(len(name) for name, _ in rows) + 2
        for name, text in rows:
            first, *more = _wrapped(text, max(width - 2 - column, _NARROWEST))
            lines.append(f"  {cyan}{name}{plain}{' ' * (column - len(name))}{first}")
            lines += [f"  {'':<{column}}{line}" for line in more]
    lines += ["", f"{bold}The same by what it is about:{plain}"]
    for name, verbs in GROUPS.items():
        if hidden and name in WHATSAPP_GROUPS:
            continue
        lines += _wrapped(f"  {cyan}{name}{plain} {'|'.join(verbs)}", width)
    lines += ["", "Start here:", *entries(_BEGINNINGS, 21, min(width, _WIDTH))]
    lines += ["", "Exit codes:", *entries(EXIT_CODES, 4, min(width, _WIDTH))]
    out.line("\n".join(lines))


def without_whatsapp() -> bool:
    """Whether what is set says that WhatsApp is not run here. Nothing is loaded to find out."""
    said = {**_dotenv(), **os.environ}
    if (wanted := said.get("EVOSAGA_WHATSAPP", "").strip().lower()) != "":
        return wanted in ("0", "f", "false", "n", "no", "off")
    if said.get("EVOSAGA_EVOLUTION_URL") or said.get("EVOSAGA_EVOLUTION_SERVERS"):
        return False
    if said.get("EVOSAGA_APP"):
        return True
    from importlib.metadata import entry_points

    return bool(entry_points(group="evosaga.domains"))


def _dotenv() -> dict[str, str]:
    if not os.path.isfile(".env"):
        return {}
    try:
        from dotenv import dotenv_values

        return {name: value for name, value in dotenv_values(".env").items() if value is not None}
    except Exception:  # whatever is wrong with it, this page is shown
        return {}


def entries(rows: Iterable[tuple[str, str]], first: int, width: int = _WIDTH) -> Iterator[str]:
    """Two columns, of which the first one is ``first`` wide, and both together ``width``."""
    for name, text in rows:
        line, *more = _wrapped(text, max(width - first - 2, _NARROWEST))
        yield f"  {name:<{first}}{line}"
        yield from (f"  {'':<{first}}{line}" for line in more)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _colours(out: Output) -> bool:
    return out.terminal and not os.environ.get("NO_COLOR")
