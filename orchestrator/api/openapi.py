"""Helpers for the OpenAPI document: errors, and bodies that routes read themselves."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from evosaga.orchestrator.api.problems import TITLES


class ProblemShape(BaseModel):
    """RFC 9457. ``code`` is for programs, ``detail`` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str


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
        media["schema"] = ProblemShape.model_json_schema()
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
