"""The texts of ``--help``."""

from __future__ import annotations

import textwrap
from typing import Final

from evosaga.orchestrator.cli.verbs import VARIABLES, VERBS, Verb

_WIDTH: Final = 80


def top() -> str:
    """What ``evosaga`` alone says."""
    lines = [
        "evosaga keeps Evolution API, Postgres and Redis in agreement: every create and every",
        "delete of a WhatsApp integration happens in all three, or is undone in all three.",
        "",
        "usage: evosaga [--json] [--debug] VERB …",
    ]
    for group in dict.fromkeys(verb.group for verb in VERBS):
        lines += ["", f"{group}:"]
        for verb in VERBS:
            if verb.group == group:
                lines += _entry(verb.name, verb.sentence, 20)
    lines += ["", "Start here:"]
    lines += _entry("evosaga demo", "see it work", 20)
    lines += _entry("evosaga dev", "play with it, from a second terminal", 20)
    lines += _entry("evosaga VERB --help", "an example, and the variables it needs", 20)
    lines += ["", "Options, before or after the verb:"]
    lines += _entry("--json", "JSON on stdout, for programs (verbs that print data)", 20)
    lines += _entry("--debug", "the traceback of what fails (also: EVOSAGA_LOG_LEVEL=debug)", 20)
    lines += _entry("--version", "the version", 20)
    lines += ["", "Exit codes:"]
    for code, meaning in _EXIT_CODES:
        lines += _entry(code, meaning, 4)
    return "\n".join(lines) + "\n"


_EXIT_CODES: Final = (
    ("0", "done"),
    (
        "1",
        "the saga did not complete (rejected, rolled back, parked, or still running when the "
        "time was over), or doctor found something bad",
    ),
    (
        "2",
        "wrong usage, input, settings or an unknown id; also a database that needs "
        "`evosaga migrate`",
    ),
    ("3", "a server can't be reached"),
)


def description(verb: Verb) -> str:
    """What a verb does."""
    return "\n\n".join(textwrap.fill(text, _WIDTH) for text in (verb.sentence, verb.more) if text)


def epilog(verb: Verb) -> str:
    """An example, and the variables that matter to it."""
    lines = ["example:", f"  {verb.example}"]
    if verb.variables:
        lines += ["", "environment (or a file .env):"]
        for name in verb.variables:
            lines += _entry(name, VARIABLES[name], 28)
    return "\n".join(lines)


def _entry(name: str, text: str, width: int) -> list[str]:
    told = textwrap.wrap(text, _WIDTH - width - 2) or [""]
    return [f"  {name:<{width}}{told[0]}", *(f"  {'':<{width}}{line}" for line in told[1:])]
