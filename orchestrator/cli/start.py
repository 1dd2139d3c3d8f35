"""The verbs ``start`` (any saga) and ``sagas`` (which there are)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from evosaga.orchestrator.cli import params
from evosaga.orchestrator.cli.errors import DONE, WRONG, CliError
from evosaga.orchestrator.cli.integrations import Asking, ask

if TYPE_CHECKING:
    from evosaga.sagas.definition import Saga, Step

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
    from evosaga.events.commands import STEERING

    if command in STEERING:
        verb = command.removeprefix("saga.")
        raise CliError(WRONG, f"{command!r} starts no saga: evosaga {verb} ID")
    return ask(command, _object(data), asking, out)


def _object(data: str) -> dict[str, Any]:
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
    import json

    from evosaga.orchestrator import app
    from evosaga.sagas.conflicts import in_words

    known = app.registry()
    every = sorted(known.versions.values(), key=lambda one: (one.internal, one.name, -one.version))
    if out.json:
        out.data({"sagas": [_document(one, known.packages.get(one.name, "")) for one in every]})
        return DONE
    for one in every:
        started = "starts by itself" if one.internal else one.command
        out.line(f"{one.name} v{one.version}  {started}  ({known.packages.get(one.name, '')})")
        out.line(f"    {diagram(one)}")
        if one.admit is not None or one.business_key is not None:
            out.line(f"    when its business key is taken: {in_words(one.on_conflict)}")
        if schema:
            out.line(f"    data: {json.dumps(one.input.model_json_schema(), ensure_ascii=False)}")
    return DONE


def diagram(saga: Saga) -> str:
    """Its steps in a line: what can be undone, the point of no return, what is tried until done."""
    return " > ".join(_drawn(step) for step in saga.steps)


def _drawn(step: Step) -> str:
    at = f" at {', '.join(map(str, step.limits))}" if step.limits else ""
    return f"{_kind(step)}{at}"


def _kind(step: Step) -> str:
    if step.undo is not None:
        tries = f", {step.undo_retry.attempts} times at most" if step.undo_retry else ""
        return f"{step.name} (undone by {getattr(step.undo, '__name__', 'its undo')}{tries})"
    return f"{step.name} ({'no way back' if step.kind == 'pivot' else 'tried until done'})"


def _document(saga: Saga, package: str) -> dict[str, Any]:
    return {
        "saga": saga.name,
        "version": saga.version,
        "command": saga.command,
        "internal": saga.internal,
        "package": package,
        "organizations": saga.organization is not None
        or saga.command in ("integration.create", "integration.delete"),
        "on_conflict": saga.on_conflict
        if isinstance(saga.on_conflict, str)
        else dict(saga.on_conflict),
        "steps": [
            {
                "name": step.name,
                "kind": str(step.kind),
                "attempts": step.retry.attempts,
                "undo_attempts": step.retry_of("compensation").attempts if step.undo else None,
                "timeout": step.timeout,
                "limits": [
                    {"name": one.name, "concurrency": one.concurrency, "rate": one.rate}
                    for one in step.limits
                ],
                "probe": step.probe is not None,
            }
            for step in saga.steps
        ],
        "data": saga.input.model_json_schema(),
        "result": saga.result.model_json_schema() if saga.result is not None else None,
    }
