"""Makes the pages of ``docs/reference/`` that are lists of names, from the code that has them.

Tables, metrics, routes and streams come from the golden files, which ``tests/contract`` holds
against running servers; variables, verbs, events and codes come from the code itself.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from evosaga.events import streams
from evosaga.events.commands import DEEPEST, LARGEST
from evosaga.events.model import KINDS
from evosaga.orchestrator.api.problems import TITLES
from evosaga.orchestrator.local.evolution.fault_modes import MODES
from evosaga.orchestrator.whatsapp.health.connection_state import CURES
from evosaga.orchestrator.whatsapp.reconciliation.verdicts import VERDICTS
from tests.harness.documentation import codes, meanings, variables

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "docs" / "reference"
GOLDEN: Final = ROOT / "tests" / "contract" / "golden"
NOTE: Final = "<!-- Made by `make docs` from the code. Edits here are lost. -->"


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    made = {
        "environment.md": environment(),
        "command-line.md": command_line(),
        "http-routes.md": routes(),
        "streams-and-keys.md": streams_and_keys(),
        "events.md": events(),
        "codes.md": all_codes(),
        "metrics.md": metrics(),
        "tables.md": tables(),
        "simulator-faults.md": faults(),
    }
    return {name: re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" for name, text in made.items()}


def write() -> list[str]:
    """Write the pages that differ; their names."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    changed = stale()
    for name, text in changed.items():
        (FOLDER / name).write_text(text)
    return list(changed)


def stale() -> dict[str, str]:
    """The pages that are not as the code has it, as it has them."""
    return {name: text for name, text in pages().items() if _stored(name) != text}


def environment() -> str:
    rows = [(f"`{one.name}`", one.meaning, one.default) for one in variables.variables()]
    return _page(
        "Environment variables",
        "evosaga reads these from the environment and from a file `.env`. A bad value stops the "
        "start with one line that names the variable. Times are in seconds. How to use them: "
        "[configure](../how-to/configure.md).",
        _table(("variable", "meaning", "default"), rows),
        "## Beside the settings",
        _table(("variable", "meaning"), meanings.OTHER_VARIABLES.items()),
    )


def command_line() -> str:
    from evosaga.orchestrator.cli import main
    from evosaga.orchestrator.cli.verbs import app

    def told(*words: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main([*words, "--help"])
        return f"```text\n{said.getvalue().rstrip()}\n```"

    with patch.dict(os.environ, {"COLUMNS": "88"}):
        verbs = [verb for verb in app if not verb.startswith("-")]
        parts = [text for verb in verbs for text in (f"## {verb}", told(verb))]
        return _page("Command line", "What `evosaga --help` says, verb by verb.", told(), *parts)


def routes() -> str:
    document = _golden("openapi")
    parts: list[str] = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts += [f"## {method.upper()} {path}", _sentence(route.get("summary", ""))]
            parts += [route.get("description", ""), _parameters(route), _answers(route)]
    return _page(
        "HTTP routes",
        "From the OpenAPI document, which a server has at `/openapi.json` and, for people, at "
        "`/docs`. How to use them: [HTTP](../http.md).",
        *parts,
    )


def streams_and_keys() -> str:
    channels = _golden("asyncapi")["channels"].values()
    rows = [(f"`{one['address']}`", one["description"]) for one in channels]
    return _page(
        "Streams, channels and keys",
        "All of them begin with `EVOSAGA_REDIS_PREFIX`, if one is set. The document for "
        "programs is `/asyncapi.json`.",
        "## Streams and channels",
        _table(("name", "what it tells"), rows),
        f"The workers' consumer group on `{streams.COMMANDS}` is `{streams.GROUP}`. A command may "
        f"have {LARGEST // 1024} KiB and {DEEPEST} levels.",
        "## Commands",
        _table(("type", "data"), _commands()),
        "## Keys",
        _table(("key", "what it holds"), meanings.keys().items()),
        "In a Redis Cluster a key that a script uses together with another one is in the slot of "
        "that one, which it names in braces: `evosaga:filled:{whatsapp:instance:wa-1}`, "
        "`evosaga:removed:{evosaga:qr:wa-1}`, `evosaga:events:told:{evosaga:events}` "
        "([Redis Cluster](../how-to/redis-cluster.md#names)).",
    )


def _commands() -> Iterable[tuple[str, str]]:
    for message in _golden("asyncapi")["components"]["messages"].values():
        of = message["payload"].get("properties", {})
        type_ = of.get("type", {}).get("const", "")
        if "." in type_ and "source" in of and "const" not in of["source"]:
            yield f"`{type_}`", _fields(of["data"])


def events() -> str:
    private = {kind.model_fields["type"].default: sorted(kind.PRIVATE) for kind in KINDS}
    said = {kind.model_fields["type"].default: _doc(kind) for kind in KINDS}
    parts = []
    for message in _golden("asyncapi")["components"]["messages"].values():
        of = message["payload"].get("properties", {})
        type_ = of.get("type", {}).get("const")
        if type_ is None or "const" not in of.get("source", {}):
            continue
        kept = ", ".join(f"`{name}`" for name in private.get(type_, ()))
        parts += [f"## {type_}", said.get(type_, meanings.NOTICES.get(type_, ""))]
        parts += [f"`data`: {_fields(of['data'])}."]
        parts += [f"In Postgres alone: {kept}." if kept else ""]
    return _page(
        "Event types",
        f"Entries of the stream `{streams.EVENTS}`: CloudEvents 1.0 in JSON, at least once, in "
        "order for each saga. Deduplicate by `id`. They are rows of `evosaga.saga_events` too.",
        *parts,
    )


def all_codes() -> str:
    cures = codes.mapping("orchestrator/whatsapp/explain.py", "_CURES")
    found = codes.codes()
    known = {one.code for one in found}
    rows = [
        (f"`{one.code}`", one.outcome, _said(one), cures.get(one.code, ""))
        for one in found
        if one.outcome != "dead letter"
    ]
    rows += [
        (f"`{c}`", "held", meanings.HOLDS.get(c, ""), cures[c]) for c in cures if c not in known
    ]
    rows += [(f"`{code}`", outcome, said, "") for code, outcome, said in meanings.ELSEWHERE]
    letters = [(f"`{c.code}`", _said(c)) for c in found if c.outcome == "dead letter"]
    problems = [(f"`{code}`", str(status), title) for code, (status, title) in TITLES.items()]
    drifts = [(f"`{k}`", v.policy, v.cause, v.repair) for k, v in VERDICTS.items()]
    return _page(
        "Codes",
        "Codes are for programs and never change their meaning; new ones may be added. `…` stands "
        "for what varies. What to do about them: [troubleshoot](../how-to/troubleshoot.md).",
        "## Codes of sagas and steps",
        "*rejected* and *refused*: nothing was touched, or what was done is undone. *held*: it "
        "waits and goes on by itself. *unknown*: it may have happened, and is looked for.",
        _table(("code", "outcome", "sentence", "what to do"), sorted(rows)),
        "## Codes of dead letters",
        _table(("code", "sentence"), letters),
        "## Codes of HTTP problems",
        _table(("code", "status", "title"), problems),
        "## Drifts",
        "What `evosaga reconcile` finds. *auto*: repaired by the schedule. *ask*: repaired when "
        "you name the organization. *never*: only shown.",
        _table(("drift", "policy", "cause", "repair"), drifts),
        "## Connection states",
        "What `evosaga health` shows for an integration.",
        _table(("state", "what to do"), ((f"`{k}`", v) for k, v in CURES.items())),
    )


def _said(one: codes.Code) -> str:
    empty = not one.sentence.strip("… ")
    return meanings.CODES.get(one.code, "") if empty else one.sentence


def metrics() -> str:
    rows = []
    for name, one in _golden("metrics").items():
        if not name.endswith("_created"):
            total = "_total" if one["type"] == "counter" else ""
            labels = ", ".join(f"`{label}`" for label in one["labels"])
            rows.append((f"`{name}{total}`", one["type"], labels, one["help"]))
    return _page(
        "Metrics",
        "`GET /metrics` in the Prometheus text format, with a key of no organization. Processes "
        "with a worker (`serve`) have all of them; `api` lacks those about the worker.",
        _table(("metric", "type", "labels", "meaning"), rows),
    )


def tables() -> str:
    told = _golden("tables")
    parts: list[str] = []
    for name in sorted({row["relation"] for row in told["columns"]}):
        columns = [
            (
                f"`{row['column_name']}`",
                row["data_type"],
                "" if row["is_nullable"] == "YES" else "not null",
                f"`{row['column_default']}`" if row["column_default"] else "",
            )
            for row in told["columns"]
            if row["relation"] == name
        ]
        rules = [
            f"- `{row['definition']}`" for row in told["constraints"] if row["relation"] == name
        ]
        parts += [f"## {name}", meanings.TABLES.get(name, "")]
        parts += [_table(("column", "type", "", "default"), columns), "\n".join(rules)]
    functions = [
        (f"`{row['name']}({row['arguments']})`", row["result"]) for row in told["functions"]
    ]
    return _page(
        "Tables",
        "The schema after `evosaga migrate`. `healthcare.integrations` may be yours and older; "
        "then it has your columns too ([what Postgres must be]"
        "(../operations.md#what-postgres-must-be)).",
        *parts,
        "## Functions",
        _table(("function", "result"), functions),
    )


def faults() -> str:
    rows = []
    for name, mode in MODES.items():
        parameters = ", ".join(f"`{each}`" for each in mode.parameters)
        where = ", ".join(sorted(map(str, mode.operations)))
        rows.append((f"`{name}`", mode.story, parameters, where))
    return _page(
        "Faults of the simulated Evolution server",
        f"The {len(rows)} faults that `POST /__control__/faults` arms. How to use them: "
        "[test against the simulator](../how-to/simulator.md).",
        _table(("mode", "what happens", "parameters", "operations"), rows),
    )


def _page(title: str, first: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", NOTE, first, *(part for part in parts if part)])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _fields(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    names = schema.get("properties", {})
    return ", ".join(f"`{name}`" + ("" if name in required else " (optional)") for name in names)


def _parameters(route: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{one['name']}`",
            one["in"],
            one.get("description") or one.get("schema", {}).get("type", ""),
        )
        for one in route.get("parameters", ())
    ]
    return _table(("parameter", "in", "meaning"), rows) if rows else ""


def _answers(route: Mapping[str, Any]) -> str:
    rows = [
        (status, answer.get("description", "")) for status, answer in route["responses"].items()
    ]
    return _table(("status", "meaning, or the codes of its problems"), rows)


def _sentence(text: str) -> str:
    return text if not text or text[-1] in ".?" else f"{text}."


def _doc(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split()) if kind.__doc__ else ""


def _golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _stored(name: str) -> str:
    path = FOLDER / name
    return path.read_text() if path.is_file() else ""
