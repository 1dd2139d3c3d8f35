"""The verbs ``start`` (any saga) and ``sagas`` (which there are)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from evosaga.orchestrator.cli import params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.integrations import Asking, ask
from evosaga.orchestrator.cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evosaga.orchestrator.cli.output import Output

_Options = Annotated[Asking, Parameter(name="*")]
_DEFAULTS: Final = Asking()


def start(
    command: Annotated[params.Text, Parameter(name="COMMAND")],
    /,
    *,
    data: Annotated[str, Parameter(metavar="JSON")] = "{}",
    asking: _Options = _DEFAULTS,
    out: params.Out,
) -> int:
    """Give a command, and watch the saga that it starts.

    Args:
        command: the command's name: evosaga sagas lists them
        data: its data as a JSON object; @FILE reads a file, - what is piped in
    """
    refuse_steering(command)
    return ask(command, object_of(data), asking, out)


def refuse_steering(command: str) -> None:
    """Raises ``CliError`` for a command that is about a saga and starts none."""
    from evosaga.events.commands import STEERING

    if command in STEERING:
        verb = command.removeprefix("saga.")
        raise CliError(WRONG, f"{command!r} starts no saga: evosaga {verb} ID")


def object_of(data: str) -> dict[str, Any]:
    """What ``--data`` says. Raises ``CliError``."""
    from evosaga.events.commands import BadCommand, read_json

    try:
        if data == "-":
            raw = sys.stdin.buffer.read()
        elif data.startswith("@"):
            raw = Path(data[1:]).read_bytes()
        else:
            raw = data.encode("utf-8", "surrogateescape")
    except OSError as error:
        raise CliError(WRONG, f"--data: {data[1:]!r} can't be read: {error.strerror}") from error
    try:
        found = read_json(raw)
    except BadCommand as error:
        raise CliError(WRONG, f"--data: {error.message}") from None
    if not isinstance(found, dict):
        raise CliError(WRONG, '--data: must be a JSON object, such as {"room": 101}')
    return found


def sagas(*, schema: bool = False, out: params.Out) -> int:
    """List the sagas that this installation knows.

    Args:
        schema: show what each command's data must look like
    """
    from evosaga.orchestrator import app
    from evosaga.orchestrator.queries.definitions import described

    return tell_definitions(described(app.registry()), out, schema=schema)


def tell_definitions(found: Sequence[Mapping[str, Any]], out: Output, *, schema: bool) -> int:
    """Show definitions as JSON has them; the exit code."""
    if out.json:
        out.data({"sagas": list(found)})
        return DONE
    from evosaga.sagas.conflicts import in_words

    for one in found:
        started = "starts by itself" if one["internal"] else one["command"]
        out.wrapped(printable(f"{one['saga']} v{one['version']}  {started}  ({one['package']})"))
        out.wrapped(printable(" > ".join(map(_drawn, one["steps"]))), indent=4)
        if one["keyed"]:
            taken = in_words(one["on_conflict"])
            out.wrapped(printable(f"when its business key is taken: {taken}"), indent=4)
        if schema:
            out.line(printable(f"    data: {json.dumps(one['data'], ensure_ascii=False)}"))
    return DONE


def _drawn(step: Mapping[str, Any]) -> str:
    """What can be undone, the point of no return, what is tried until it is done."""
    from evosaga.sagas.limits import Limit

    kind = "no way back" if step["kind"] == "pivot" else "tried until done"
    if step["undo"] is not None:
        own = step["undo_attempts"] != step["attempts"]
        kind = f"undone by {step['undo']}"
        kind += f", {step['undo_attempts']} times at most" if own else ""
    limits = ", ".join(str(Limit(**one)) for one in step["limits"])
    return f"{step['name']} ({kind}){f' at {limits}' if limits else ''}"
