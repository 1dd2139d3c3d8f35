"""The form that starts any saga: its fields are those of the command's model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from fastapi import Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from evosaga.events.commands import BadCommand, read_json
from evosaga.orchestrator.api.auth import Caller
from evosaga.orchestrator.api.commands import allowed, understood
from evosaga.orchestrator.api.dependencies import AppContext
from evosaga.orchestrator.api.pages.forms import (
    Form,
    Reader,
    Submitted,
    absent,
    frame,
    page_router,
    parts,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import ROOT, respond
from evosaga.orchestrator.api.pages.saga_actions import by_form
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.submission import submit
from evosaga.sagas.definition import Saga

router: Final = page_router()
_OWN_FORMS: Final = frozenset({"integration.create", "integration.delete"})
"""Commands that have pages of their own."""
Kind: TypeAlias = Literal["text", "number", "checkbox", "select", "json"]
_PLAIN: Final[Mapping[str, Kind]] = {
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "checkbox",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the form. ``json``: whatever has no input of its own is written as JSON."""

    name: str
    title: str
    kind: Kind
    required: bool
    options: tuple[str, ...] = ()
    said: str = ""


def fields_of(saga: Saga) -> list[Field]:
    """The fields of the command's data, from its JSON schema. Pure."""
    schema = saga.input.model_json_schema()
    needed = schema.get("required", ())
    return [
        _field(name, _resolved(one, schema), name in needed)
        for name, one in schema.get("properties", {}).items()
    ]


def _resolved(one: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The definition behind a reference, or of a field that may be null."""
    every = [each for each in one.get("anyOf", ()) if each.get("type") != "null"]
    if len(every) == 1:
        one = {**one, **every[0]}
    name = str(one.get("$ref", "")).rpartition("/")[2]
    return {**schema.get("$defs", {}).get(name, {}), **one}


def _field(name: str, one: Mapping[str, Any], required: bool) -> Field:
    title, said = one.get("title", name), one.get("description", "")
    if "enum" in one and all(isinstance(each, str) for each in one["enum"]):
        return Field(name, title, "select", required, tuple(one["enum"]), said)
    kind: Kind = _PLAIN.get(str(one.get("type")), "json")
    return Field(name, title, kind, required and kind != "checkbox", said=said)


def startable(here: AppContext, who: Caller) -> frozenset[str]:
    """The commands for which this caller is shown a form."""
    return frozenset(
        command
        for command, saga in here.registry.public.items()
        if command not in _OWN_FORMS
        and (who.organization_id is None or saga.organization is not None)
    )


@router.get(f"{ROOT}/start/{{command}}")
async def new(request: Request, who: Reader, command: str) -> Response:
    """The empty form."""
    return _form(request, who, command, Form({"id": str(uuid7())}), "")


@router.post(f"{ROOT}/start/{{command}}")
async def start(request: Request, who: Reader, command: str, submitted: Submitted) -> Response:
    """Give the command, and redirect to its saga."""
    here = parts(request)
    saga = _saga(here, who, command)
    try:
        given = by_form(who, submitted, command, _data(saga, submitted))
        if who.organization_id is not None:
            given = await allowed(here, who, who.organization_id, given)
        organization, given = await understood(here, given)
        accepted = await submit(here, who, given, organization)
    except BadCommand as error:
        return _form(request, who, command, submitted, error.message)
    except Problem as error:
        return _form(request, who, command, submitted, str(error.detail))
    return see_other(f"{ROOT}/sagas/{accepted.saga_id}")


def _saga(here: AppContext, who: Caller, command: str) -> Saga:
    if command not in startable(here, who):
        raise absent("command")
    return here.registry.by_command[command]


def _data(saga: Saga, submitted: Form) -> dict[str, Any]:
    """What was filled in; a field that was left empty is not given. Raises ``BadCommand``."""
    data: dict[str, Any] = {}
    for field in fields_of(saga):
        text = submitted[f"field.{field.name}"]
        if field.kind == "checkbox":
            data[field.name] = bool(text)
        elif text and field.kind in ("text", "select"):
            data[field.name] = text
        elif text:
            try:
                data[field.name] = read_json(text.encode())
            except BadCommand as error:
                kind = "a number" if field.kind == "number" else f"JSON ({error.message})"
                raise BadCommand("invalid_data", f"{field.name}: must be {kind}") from None
    return data


def _form(request: Request, who: Caller, command: str, given: Form, wrong: str) -> Response:
    saga = _saga(parts(request), who, command)
    return respond(
        "start.html",
        422 if wrong else 200,
        **frame(request, who, "definitions"),
        command=command,
        saga=saga,
        fields=fields_of(saga),
        given=given,
        wrong=wrong,
    )
