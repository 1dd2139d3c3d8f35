"""`/docs`: the OpenAPI document as an HTML page without scripts or external resources."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response

from evosaga.orchestrator.api import asyncapi
from evosaga.orchestrator.api.problems import TITLES
from evosaga.orchestrator.api.static_documents import (
    ASYNCAPI,
    DOCS,
    OPENAPI,
    STYLE,
    Written,
    answer,
    document,
)
from evosaga.sagas.registry import SagaRegistry

router: Final = APIRouter(include_in_schema=False)
_HERE: Final = Path(__file__).parent / "documents"
_BASE: Final = "http://the-address-it-was-asked-at.invalid"
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    place: str
    kind: str
    said: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: str
    said: str
    example: str | None


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: str
    summary: str
    description: str
    tag: str
    anchor: str
    open: bool
    parameters: list[_Parameter]
    curl: str
    answers: list[_Answer]


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page; its examples use the address of the request."""
    page = await document(request, DOCS)
    base = str(escape(str(request.base_url).rstrip("/"))).encode()
    policy = {"Content-Security-Policy": _POLICY}
    return answer(request, page.replace(_BASE.encode(), base), "text/html", **policy)


@router.get("/docs.css")
async def style(request: Request) -> Response:
    """Its style sheet."""
    return answer(request, await document(request, STYLE), "text/css")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return answer(request, await document(request, OPENAPI), "application/json")


def written(app: FastAPI, registry: SagaRegistry, redis_prefix: str) -> Written:
    """Write all documents. Slow."""
    described = app.openapi()
    return {
        OPENAPI: _json(described),
        ASYNCAPI: _json(asyncapi.document(registry, redis_prefix)),
        DOCS: _page(described).encode(),
        STYLE: (_HERE / "docs.css").read_bytes(),
    }


def _json(told: dict[str, Any]) -> bytes:
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def _page(document: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["prose"] = _prose
    routes = [
        _route(document, method, path, operation, _BASE)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    tags = list(dict.fromkeys(route.tag for route in routes))
    return environment.get_template("docs.html").render(
        info=document["info"],
        groups=[(tag, [route for route in routes if route.tag == tag]) for tag in tags],
        problems=TITLES,
    )


def _route(
    document: dict[str, Any], method: str, path: str, operation: dict[str, Any], base: str
) -> _Route:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    example = body.get("example")
    free = operation.get("security") == []
    return _Route(
        method.upper(),
        path,
        operation.get("summary", ""),
        operation.get("description", ""),
        operation.get("tags", ["other"])[0],
        operation["operationId"],
        free,
        [_parameter(parameter) for parameter in operation.get("parameters", [])],
        _curl(method.upper(), f"{base}{path}", example, free),
        [_answer(document, *entry) for entry in sorted(operation["responses"].items())],
    )


def _parameter(parameter: dict[str, Any]) -> _Parameter:
    schema = parameter.get("schema", {})
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    kind = kinds[0] if kinds else {}
    words = " | ".join(kind["enum"]) if "enum" in kind else kind.get("format", kind.get("type", ""))
    said = parameter.get("description", schema.get("description", ""))
    if schema.get("default") is not None:
        said = f"{said} (default {schema['default']})".strip()
    return _Parameter(parameter["name"], parameter["in"], words, said)


def _curl(method: str, url: str, example: Any, free: bool) -> str:
    lines = [f"curl {'' if method == 'GET' else f'-X {method} '}{url}"]
    if not free:
        lines.append("-H 'Authorization: Bearer KEY'")
    if example is not None:
        lines.append(f"-d '{json.dumps(example, ensure_ascii=False)}'")
    return " \\\n     ".join(lines)


def _answer(document: dict[str, Any], status: str, answer: dict[str, Any]) -> _Answer:
    content: dict[str, Any] = answer.get("content", {})
    media = content.get("application/json")
    example = _example(document, media.get("schema", {})) if media else None
    if problem := content.get("application/problem+json"):
        example = next(iter(problem["examples"].values()))["value"]
    text = json.dumps(example, ensure_ascii=False, indent=2) if example is not None else None
    return _Answer(status, answer.get("description", ""), text)


def _example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """An example answer for a schema, from its examples and types."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "example" in schema:
        return schema["example"]
    if schema.get("examples"):
        return schema["examples"][0]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if "enum" in schema:
        return schema["enum"][0]
    for choice in schema.get("anyOf", schema.get("oneOf", [])):
        return _example(document, choice)
    if "properties" in schema:
        return {name: _example(document, part) for name, part in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_example(document, schema.get("items", {}))]
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return {"…": _example(document, schema["additionalProperties"])}
    return {"boolean": True, "integer": 0, "number": 0, "string": "…"}.get(schema.get("type", ""))


def _prose(text: str) -> Markup:
    """Paragraphs, with text between backticks as code."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        parts = paragraph.split("`")
        told = [
            Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
            for i, part in enumerate(parts)
        ]
        paragraphs.append(Markup("<p>{}</p>").format(Markup("").join(told)))
    return Markup("\n").join(paragraphs)
