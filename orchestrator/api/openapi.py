"""Helpers for the OpenAPI document: errors, bodies that routes read themselves, security.

The document is what generators of clients read, so every schema has a name under ``components``.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from evosaga.orchestrator.api.problems import TITLES


class FieldProblem(BaseModel):
    """One value of the request that is wrong."""

    where: str = Field(description="its place: `body.name`, `query.limit`")
    what: str = Field(description="what is wrong with it, in words")


class ProblemShape(BaseModel):
    """RFC 9457. ``code`` is for programs, ``detail`` for people.

    Some codes come with further members, such as ``saga_id``.
    """

    model_config = ConfigDict(title="Problem")

    type: str
    title: str
    status: int
    code: str
    detail: str
    fields: list[FieldProblem] = Field([], description="with `invalid_data`: the wrong values")


_SCHEMA: Final = ProblemShape.model_json_schema()
"""Made once: every error of every route has it, and to make it takes a millisecond."""


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The documentation of a route's errors."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in dict.fromkeys(codes):
        status, title = TITLES[code]
        entry = documented.setdefault(status, {"description": "", "content": {}})
        entry["description"] = "; ".join(filter(None, (entry["description"], f"`{code}`")))
        example = {
            "type": f"/docs#{code}",
            "title": title,
            "status": status,
            "code": code,
            "detail": f"{title}.",
        }
        media = entry["content"].setdefault("application/problem+json", {"examples": {}})
        media["schema"] = deepcopy(_SCHEMA)
        media["examples"][code] = {"value": example}
    return documented


EVERYWHERE: Final = ("unauthorized", "rate_limited", "invalid_data", "internal", "unavailable")
"""The codes of every route that needs a key; ``invalid_data`` is for an unknown parameter."""


def json_body(
    schema: Mapping[str, Any], example: Mapping[str, Any], *, required: bool = True
) -> dict[str, Any]:
    """A request body for a route that reads its body itself, strictly."""
    content = {"application/json": {"schema": plain(schema), "example": example}}
    return {"requestBody": {"required": required, "content": content}}


WEBHOOK_SCHEMES: Final[Mapping[str, Mapping[str, str]]] = {
    "Webhook-Token": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Webhook-Token",
        "description": "the `webhook_token` of the integration",
    },
    "Webhook-JWT": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "signed with the `webhook_token` of the integration",
    },
    "Global-Webhook-Token": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "the token of Evolution's global webhook: `evosaga doctor --show-secrets`",
    },
}
"""How Evolution authenticates at the webhook routes, which take none of the API keys."""


def secured(*schemes: str) -> dict[str, Any]:
    """The security of a webhook route: any one of the schemes."""
    return {"security": [{scheme: []} for scheme in schemes]}


def finish(document: dict[str, Any], everywhere: Mapping[int | str, dict[str, Any]]) -> None:
    """Complete the document that FastAPI made, in place.

    ``everywhere``: the errors that every route may answer with.
    """
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for operation in _operations(document):
        answers = operation["responses"]
        for answer in answers.values():
            if answer["description"] == "Successful Response":
                answer["description"] = "done"
        if "application/json" in answers.get("422", {}).get("content", {}):
            answers["422"] = problems("invalid_data")[422]
        for status, problem in everywhere.items():
            answers.setdefault(str(status), problem)
        for media in _contents(operation):
            media["schema"] = _named(media["schema"], schemas)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["schemas"] = dict(sorted(schemas.items()))
    components.setdefault("securitySchemes", {}).update(WEBHOOK_SCHEMES)


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for operations in document["paths"].values():
        yield from operations.values()


def _contents(operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every body of an operation, asked or answered."""
    for part in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from part.get("content", {}).values()


def _named(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema under its title, with its definitions beside it."""
    if schema.get("type") != "object" or "title" not in schema:
        return schema
    name = schema["title"]
    for its, definition in schema.get("$defs", {}).items():
        schemas[its] = _referring(definition)
    schemas[name] = _referring({k: v for k, v in schema.items() if k != "$defs"})
    return {"$ref": f"#/components/schemas/{name}"}


def _referring(schema: Any) -> Any:
    """A schema whose references are to the document's components."""
    if isinstance(schema, Mapping):
        return {
            key: value.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref"
            else _referring(value)
            for key, value in schema.items()
        }
    return [_referring(item) for item in schema] if isinstance(schema, list) else schema


def plain(schema: Any) -> Any:
    """A schema with regular expressions in JavaScript's syntax, which JSON Schema requires."""
    if isinstance(schema, Mapping):
        return {
            key: value.replace(r"\A", "^").replace(r"\z", "$")
            if key == "pattern" and isinstance(value, str)
            else plain(value)
            for key, value in schema.items()
        }
    return [plain(item) for item in schema] if isinstance(schema, list) else schema
