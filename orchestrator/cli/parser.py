"""Arguments in, a namespace out; whatever is wrong with them is said here, with exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from evosaga.orchestrator.cli import helping
from evosaga.orchestrator.cli.values import letter as _letter
from evosaga.orchestrator.cli.values import number as _number
from evosaga.orchestrator.cli.values import page as _page
from evosaga.orchestrator.cli.values import port as _port
from evosaga.orchestrator.cli.values import remark as _remark
from evosaga.orchestrator.cli.values import seconds as _seconds
from evosaga.orchestrator.cli.values import text as _text
from evosaga.orchestrator.cli.values import uuid as _uuid
from evosaga.orchestrator.cli.verbs import VERBS

STATUSES: Final = ("running", "compensating", "completed", "compensated", "failed", "rejected")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Understand the command line. Exits with 2 when it makes no sense, 0 after help."""
    parser = _parser()
    words = _joined(list(sys.argv[1:] if argv is None else argv))
    arguments, unknown = parser.parse_known_args(words)
    if unknown:  # said by the verb, with its usage
        getattr(arguments, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if "verb" not in arguments:
        parser.print_help()
        parser.exit()
    return arguments


def _joined(words: list[str]) -> list[str]:
    """The same with a verb of two words as one: whoever says ``events republish`` means that."""
    at = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
    two = " ".join(words[at : at + 2])
    return [*words[:at], two, *words[at + 2 :]] if two in _OPTIONS and " " in two else words


def actions_of(verb: str) -> list[argparse.Action]:
    """What a verb takes: its own options and arguments, then those that all verbs take."""
    parser = argparse.ArgumentParser(add_help=False)
    if options := _OPTIONS.get(verb):
        options(parser)
    _common(parser, default=argparse.SUPPRESS)
    return parser._actions


class _Version(argparse.Action):
    """Looked up only when it is asked for: that takes longer than all the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"evosaga {version('evosaga')}\n")


class _Top(argparse.ArgumentParser):
    def format_help(self) -> str:
        return helping.top()


def _parser() -> argparse.ArgumentParser:
    top = _Top(prog="evosaga", allow_abbrev=False)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version")
    _common(top, default=False)
    verbs = top.add_subparsers(metavar="VERB", parser_class=argparse.ArgumentParser)
    for verb in VERBS:
        parser = verbs.add_parser(
            verb.name,
            description=helping.description(verb),
            epilog=helping.epilog(verb),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if options := _OPTIONS.get(verb.name):
            options(parser)
        _common(parser, default=argparse.SUPPRESS)
        parser.set_defaults(verb=verb, parser=parser)
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
    add("--server", type=_text, metavar="NAME", help="one of EVOSAGA_EVOLUTION_SERVERS")
    _asking(parser)


def _delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance_name", type=_text, metavar="NAME", help="the instance's name")
    help_ = "refuse unless it belongs to this organization"
    parser.add_argument("--organization-id", type=_uuid, metavar="UUID", help=help_)
    _asking(parser)


def _qr(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("instance_name", type=_text, metavar="NAME", help="the instance's name")
    add("--follow", action="store_true", help="renew it until the phone is connected")
    add("--number", type=_number, metavar="DIGITS", help="asks for a pairing code as well")


def _asking(parser: argparse.ArgumentParser) -> None:
    help_ = "the command's id, which makes it safe to repeat; made when left out"
    parser.add_argument("--id", type=_text, help=help_)
    _waiting(parser)


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="publish the command and leave")
    help_ = "how long to watch (default: 60); the saga goes on after that"
    parser.add_argument("--timeout", type=_seconds, default=60.0, metavar="SECONDS", help=help_)


def _steering(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help_ = "saga ids, command ids or instance names"
    add("references", type=_text, nargs="*", metavar="ID", help=help_)
    add("--saga", type=_text, metavar="NAME", help="only of this kind, such as create-integration")
    add("--code", type=_text, help="only those that stopped for this reason: list shows it")
    add("--organization-id", type=_uuid, metavar="UUID", help="only its sagas")
    add("--since", type=_text, metavar="WHEN", help="only those begun since: 2025-12-05T12:00Z, 2d")
    add("--reason", type=_remark, help="recorded in the saga's history")
    add("--yes", action="store_true", help="don't ask before steering many")
    add("--no-wait", action="store_true", help="publish the commands and leave")
    help_ = "how long to watch (default: 60, for several 600); the sagas go on after that"
    add("--timeout", type=_seconds, metavar="SECONDS", help=help_)


def _replay(parser: argparse.ArgumentParser) -> None:
    help_ = "show what it would do to the world and why, and change nothing"
    parser.add_argument("--plan", action="store_true", help=help_)
    parser.add_argument("--status", choices=("failed", "compensated"), help="all of these")
    _steering(parser)


def _cancel(parser: argparse.ArgumentParser) -> None:
    choices = ("running", "compensating", "failed")
    parser.add_argument("--status", choices=choices, help="all of these")
    _steering(parser)


def _reference(parser: argparse.ArgumentParser) -> None:
    help_ = "a saga id, a command id or an instance name"
    parser.add_argument("reference", type=_text, metavar="ID", help=help_)


def _events(parser: argparse.ArgumentParser) -> None:
    _reference(parser)
    parser.add_argument("--follow", action="store_true", help="go on until the saga is over")


def _republish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help_ = "from when on: 2025-12-05T12:00Z, or ago: 30m, 1h, 2d"
    add("--since", type=_text, required=True, metavar="WHEN", help=help_)
    add("--until", type=_text, metavar="WHEN", help="up to then; without it, up to now")


def _rebuild(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")


def _list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--status", choices=STATUSES, help="only these")
    add("--saga", type=_text, metavar="NAME", help="such as create-integration")
    add("--organization-id", type=_uuid, metavar="UUID", help="only its sagas")
    add("--instance-name", type=_text, metavar="NAME", help="only its sagas")
    add("--code", type=_text, help="only those that stopped for this reason")
    add("--since", type=_text, metavar="WHEN", help="2025-12-05T12:00Z, or ago: 30m, 1h, 2d")
    add("--limit", type=_page, default=20, metavar="N", help="how many (default: 20)")
    add("--cursor", type=_text, help="where the page before ended")


def _reconcile(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--organization-id", type=_uuid, metavar="UUID", help="only what concerns this one")
    add("--fix", action="store_true", help="repair it")
    help_ = "what the organization keeps: connected (the default), none, or an instance's NAME"
    add("--keep", type=_text, metavar="WHAT", help=help_)
    help_ = "with --fix: remove this instance, which no row names; may be given several times"
    add("--remove", type=_text, action="append", default=[], metavar="NAME", help=help_)
    help_ = "how long to wait for the repairs (default: 120); they go on after that"
    add("--timeout", type=_seconds, default=120.0, metavar="SECONDS", help=help_)


def _health(parser: argparse.ArgumentParser) -> None:
    help_ = "let rows follow what was seen, and connect again what can be"
    parser.add_argument("--fix", action="store_true", help=help_)


def _doctor(parser: argparse.ArgumentParser) -> None:
    help_ = "show the address of the global webhook whole, with its token"
    parser.add_argument("--show-secrets", action="store_true", help=help_)


def _letters(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--limit", type=_page, default=20, metavar="N", help="at most so many (default: 20)")
    help_ = "take these away, by the ids that are shown"
    add("--remove", type=_letter, nargs="+", metavar="LETTER", help=help_)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="your shell")


def _dev(parser: argparse.ArgumentParser) -> None:
    help_ = "port of the simulated Evolution server (default: a free one)"
    parser.add_argument("--evolution-port", type=_port, default=0, metavar="PORT", help=help_)
    help_ = "port of the dashboard and the API (default: 8080, or a free one if that is taken)"
    parser.add_argument("--port", type=_port, metavar="PORT", help=help_)


def _listening(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", type=_text, help="default: EVOSAGA_HOST, else 127.0.0.1")
    add("--port", type=_port, metavar="PORT", help="default: EVOSAGA_PORT, else 8080; 0: any")


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
    "qr": _qr,
    "replay": _replay,
    "cancel": _cancel,
    "status": _reference,
    "why": _reference,
    "events republish": _republish,
    "rebuild": _rebuild,
    "completion": _completion,
    "events": _events,
    "letters": _letters,
    "list": _list,
    "reconcile": _reconcile,
    "health": _health,
    "dev": _dev,
    "doctor": _doctor,
    "serve": _listening,
    "api": _listening,
    "simulate-evolution": _simulate,
}
