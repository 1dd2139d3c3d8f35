"""Arguments in, a namespace out; whatever is wrong with them is said here, with exit code 2."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from orchestrator.cli.verbs import VARIABLES, VERBS, Verb

_WIDTH: Final = 80
_LONGEST_PAGE: Final = 500
STATUSES: Final = ("running", "compensating", "completed", "compensated", "failed", "rejected")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Understand the command line. Exits with 2 when it makes no sense, 0 after help."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "verb" not in arguments:
        parser.print_help()
        parser.exit()
    return arguments


class _Version(argparse.Action):
    """Looked up only when it is asked for: that takes longer than all the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"evosaga {version('evosaga')}\n")


class _Top(argparse.ArgumentParser):
    def format_help(self) -> str:
        return _top_help()


def _parser() -> argparse.ArgumentParser:
    top = _Top(prog="evosaga", allow_abbrev=False)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version")
    _common(top, default=False)
    verbs = top.add_subparsers(metavar="VERB", parser_class=argparse.ArgumentParser)
    for verb in VERBS:
        parser = verbs.add_parser(
            verb.name,
            description=_verb_description(verb),
            epilog=_verb_epilog(verb),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if options := _OPTIONS.get(verb.name):
            options(parser)
        _common(parser, default=argparse.SUPPRESS)
        parser.set_defaults(verb=verb)
    return top


def _common(parser: argparse.ArgumentParser, *, default: Any) -> None:
    """Understood before and after the verb."""
    parser.add_argument("--json", action="store_true", default=default, help="write JSON")
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show the traceback of what fails"
    )


# --- what each verb takes --------------------------------------------------------------------


def _create(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--organization-id", type=_uuid, required=True, metavar="UUID", help="whose it is")
    add("--clinic-id", type=_uuid, required=True, metavar="UUID", help="which clinic it serves")
    add("--name", type=_text, required=True, help="what people call it, 1 to 120 characters")
    add("--instance-name", type=_text, metavar="NAME", help="derived from the id when left out")
    channels = ("WHATSAPP-BAILEYS", "EVOLUTION")
    add("--channel", choices=channels, help="WHATSAPP-BAILEYS (the default) is paired by QR code")
    add("--number", type=_text, metavar="DIGITS", help="asks for a pairing code as well")
    add(
        "--webhook-url", type=_text, metavar="URL", help="its host must be in EVOSAGA_WEBHOOK_HOSTS"
    )
    _asking(parser)


def _delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance_name", type=_text, metavar="NAME", help="the instance's name")
    help_ = "refuse unless it belongs to this organization"
    parser.add_argument("--organization-id", type=_uuid, metavar="UUID", help=help_)
    _asking(parser)


def _asking(parser: argparse.ArgumentParser) -> None:
    help_ = "the command's id, which makes it safe to repeat; made when left out"
    parser.add_argument("--id", type=_text, help=help_)
    _waiting(parser)


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="publish the command and leave")
    help_ = "how long to watch (default: 60); the saga goes on after that"
    parser.add_argument("--timeout", type=_seconds, default=60.0, metavar="SECONDS", help=help_)


def _steer(parser: argparse.ArgumentParser) -> None:
    _reference(parser)
    parser.add_argument("--reason", type=_text, help="recorded in the saga's history")
    _waiting(parser)


def _reference(parser: argparse.ArgumentParser) -> None:
    help_ = "a saga id, a command id or an instance name"
    parser.add_argument("reference", type=_text, metavar="ID", help=help_)


def _events(parser: argparse.ArgumentParser) -> None:
    _reference(parser)
    parser.add_argument("--follow", action="store_true", help="go on until the saga is over")


def _list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--status", choices=STATUSES, help="only these")
    add("--saga", type=_text, metavar="NAME", help="such as create-integration")
    add("--organization-id", type=_uuid, metavar="UUID", help="only its sagas")
    add("--instance-name", type=_text, metavar="NAME", help="only its sagas")
    add("--since", type=_text, metavar="WHEN", help="2025-12-05T12:00Z, or ago: 30m, 1h, 2d")
    add("--limit", type=_page, default=20, metavar="N", help="how many (default: 20)")
    add("--cursor", type=_text, help="where the page before ended")


def _dev(parser: argparse.ArgumentParser) -> None:
    help_ = "port of the simulated Evolution server (default: a free one)"
    parser.add_argument("--evolution-port", type=_port, default=0, metavar="PORT", help=help_)


def _simulate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--port", type=_port, default=0, help="default: a free one")
    add("--host", type=_text, default="127.0.0.1", help="default: 127.0.0.1")
    add("--journal", type=Path, metavar="FILE", help="append every request to it, one JSON a line")
    add("--api-key", type=_text, metavar="KEY", help="the global key; made when left out")
    add("--version", dest="evolution_version", choices=("2.3.6", "2.3.7"), default="2.3.7")
    help_ = "scale of its waits: 1 as in real life (the default), 0 at once"
    add("--pace", type=_seconds, default=1.0, metavar="FACTOR", help=help_)
    help_ = "where it tells the events of all instances"
    add("--global-webhook", type=_text, metavar="URL", help=help_)
    add("--seed", type=int, default=0, metavar="N", help="what its chances and codes come from")


_OPTIONS: Final[dict[str, Callable[[argparse.ArgumentParser], None]]] = {
    "create": _create,
    "delete": _delete,
    "replay": _steer,
    "cancel": _steer,
    "status": _reference,
    "events": _events,
    "list": _list,
    "dev": _dev,
    "simulate-evolution": _simulate,
}

# --- what a value may look like ---------------------------------------------------------------


def _text(value: str) -> str:
    if not value or any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in value):
        raise argparse.ArgumentTypeError("must be UTF-8 text without control characters, not empty")
    return value


def _uuid(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a UUID")
    return str(UUID(value))


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?|\.[0-9]+", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number, 0 or more")
    return float(value)


def _whole(value: str, smallest: int, largest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not smallest <= int(value) <= largest:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from {smallest} to {largest}")
    return int(value)


def _port(value: str) -> int:
    return _whole(value, 0, 65535)


def _page(value: str) -> int:
    return _whole(value, 1, _LONGEST_PAGE)


# --- help -------------------------------------------------------------------------------------


def _top_help() -> str:
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


def _verb_description(verb: Verb) -> str:
    return "\n\n".join(textwrap.fill(text, _WIDTH) for text in (verb.sentence, verb.more) if text)


def _verb_epilog(verb: Verb) -> str:
    lines = ["example:", f"  {verb.example}"]
    if verb.variables:
        lines += ["", "environment (or a file .env):"]
        for name in verb.variables:
            lines += _entry(name, VARIABLES[name], 28)
    return "\n".join(lines)


def _entry(name: str, text: str, width: int) -> list[str]:
    told = textwrap.wrap(text, _WIDTH - width - 2) or [""]
    return [f"  {name:<{width}}{told[0]}", *(f"  {'':<{width}}{line}" for line in told[1:])]
