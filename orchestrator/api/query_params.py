"""Query parameters: unknown ones are refused, and times are read in common forms."""

from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query, Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, WithJsonSchema

from evosaga.events.statuses import ALIASES
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.queries.timeparse import moment


def check_parameters(request: Request) -> None:
    """Refuse parameters that the route does not have. Raises the 422.

    A filter with a misspelt name would otherwise be ignored and narrow nothing.
    """
    given = Counter(name for name, _ in request.query_params.multi_items())
    route = request.scope.get("route")
    if not given or not isinstance(route, APIRoute):
        return
    known = _parameters(route)
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    for name, times in given.items():
        if name not in known:
            detail = f"this route has no parameter {name[:80]!r}; {takes}"
            raise Problem("invalid_data", detail, parameter=name[:80], known=known)
        if times > 1:
            detail = f"the parameter {name!r} is given {times} times; give it once"
            raise Problem("invalid_data", detail, parameter=name, known=known)


def _parameters(route: APIRoute) -> list[str]:
    """The route's parameters, with those of its dependencies."""
    fields = get_flat_params(route.dependant)
    return [field.alias for field in fields if isinstance(field.field_info, params.Query)]


def _status(value: Any) -> Any:
    return ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value


StatusFilter = Annotated[
    Literal["running", "compensating", "completed", "compensated", "failed", "rejected", "held"],
    BeforeValidator(_status),
]
"""A status, or ``held``: active sagas that wait for a dependency. Other words are understood."""


def _moment(value: Any) -> Any:
    return moment(value, datetime.now(UTC)) if isinstance(value, str) else value


Since = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "examples": ["2h", "2025-12-05T12:00Z"]}),
]
SINCE = Query(description="began then or later: ISO 8601 (UTC without a zone), or ago: 30m, 2h, 7d")
