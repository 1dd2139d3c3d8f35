"""Errors as RFC 9457 ``application/problem+json``, the one shape of every error.

A 4xx says what the caller must change. A 5xx gives only a correlation id; the cause is in the log
under that id.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import asyncpg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from evosaga.events.commands import BadCommand
from evosaga.events.database import TRANSIENT
from evosaga.orchestrator.config import field_errors
from evosaga.orchestrator.engine.lease import LeaseLost
from evosaga.orchestrator.engine.resources import ResourceUnavailable
from evosaga.orchestrator.queries.sagas import BadCursor

_logger = structlog.get_logger("evosaga.api")
RETRY_AFTER: Final = 2
"""Seconds until a retry makes sense when Postgres, Redis or Evolution is down."""

TITLES: Final[Mapping[str, tuple[int, str]]] = {
    "malformed_json": (400, "The body is not JSON"),
    "not_utf8": (400, "The body is not UTF-8"),
    "too_deep": (400, "The body is nested too deeply"),
    "duplicate_key": (400, "A key is given twice"),
    "not_a_number": (400, "The body holds something that is not JSON"),
    "number_out_of_range": (400, "A number is too large"),
    "forbidden_character": (400, "A character that is not allowed"),
    "incomplete": (400, "The request was cut off"),
    "ambiguous_length": (400, "The body's length is given twice"),
    "unauthorized": (401, "Who are you?"),
    "forbidden": (403, "Not with this key"),
    "not_found": (404, "There is nothing here"),
    "unknown_saga": (404, "There is no such saga"),
    "unknown_instance": (404, "There is no such integration"),
    "unknown_letter": (404, "There is no such dead letter"),
    "method_not_allowed": (405, "Not with this method"),
    "body_timeout": (408, "The body did not come in time"),
    "conflicting_duplicate": (409, "The id was used for another command"),
    "in_progress": (409, "Another saga is at work on it"),
    "name_taken": (409, "The instance name is taken"),
    "not_replayable": (409, "The saga can't be replayed"),
    "not_cancellable": (409, "The saga can't be cancelled"),
    "blocked": (409, "What the saga would make is there already and is not its own"),
    "expired": (409, "It came after its expirytime"),
    "refused": (409, "The command was refused, and nothing was touched"),
    "no_longer_kept": (409, "The command was rejected, and the answer is no longer kept"),
    "already_connected": (409, "The phone is connected, so there is no QR code"),
    "no_qr_code": (409, "There is no QR code for it"),
    "oversized": (413, "The body is too large"),
    "unsupported_encoding": (415, "The body must not be compressed"),
    "unsupported_media_type": (415, "The body must be JSON"),
    "invalid_data": (422, "The request is understood, but its data is wrong"),
    "unknown_type": (422, "There is no such command"),
    "wrong_shape": (422, "The command's shape is wrong"),
    "bad_cursor": (422, "The cursor is not one of ours"),
    "rate_limited": (429, "Too many requests with this key"),
    "too_many_sagas": (429, "Too many sagas of this organization are under way"),
    "too_many_streams": (429, "Too many open streams"),
    "too_many_waits": (429, "Too many requests that wait"),
    "internal": (500, "That is a fault of ours"),
    "not_accepted": (500, "That is a fault of ours"),
    "rolled_back": (502, "It failed, and everything was undone"),
    "parked": (502, "It failed half-way, and a person must look"),
    "unavailable": (503, "A server behind us is away"),
}
"""Every code with its status and title. Public: codes may be added, none changes its meaning."""


_MOST_FIELDS: Final = 20


class Problem(HTTPException):
    """An answer that is an error. ``detail`` tells the caller what is wrong and the cure."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(TITLES[code][0], detail, dict(headers or {}))
        self.code = code
        self.more = more


def answer(problem: Problem) -> Response:
    """The problem as a response. The same problem always gives the same bytes."""
    status, title = TITLES[problem.code]
    body = {
        "type": f"/docs#{problem.code}",
        "title": title,
        "status": status,
        "code": problem.code,
        "detail": problem.detail,
    }
    return JSONResponse(
        body | problem.more, status, problem.headers, media_type="application/problem+json"
    )


def unavailable(what: str) -> Problem:
    """The problem for a server that is down: the request itself is right."""
    detail = f"{what} can't be reached; the request can be repeated as it is"
    return Problem("unavailable", detail, headers={"Retry-After": str(RETRY_AFTER)})


def from_exception(error: Exception, correlation_id: str) -> Problem:
    """The problem for an unexpected exception."""
    if isinstance(error, RedisError):
        return unavailable("Redis")
    if isinstance(error, ResourceUnavailable):
        return unavailable("What this saga needs")
    if isinstance(error, (*TRANSIENT, LeaseLost)):
        return unavailable("Postgres")
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return unavailable("The database's schema is not this release's, so it")
    return Problem(
        "internal",
        f"it is in our log as {correlation_id}; please name that when you report it",
        correlation_id=correlation_id,
    )


def refused(error: BadCommand, place: str = "body") -> Problem:
    """The problem for a command that is invalid or not allowed.

    ``place``: where in the request the command's data are.
    """
    more: dict[str, Any] = {}
    if error.fields:
        more["fields"] = [
            {"where": ".".join(filter(None, (place, where[:200]))), "what": what}
            for where, what in error.fields[:_MOST_FIELDS]
        ]
    return Problem(error.code if error.code in TITLES else "refused", error.message, **more)


Draw = Callable[[Request, Problem], Response | None]
"""Renders a problem as a page at addresses that serve pages; None elsewhere."""


def install(app: FastAPI, draw: Draw) -> None:
    """Register handlers for expected errors; the middleware handles the unexpected ones."""
    for kind in (
        Problem,
        BadCommand,
        BadCursor,
        ClientDisconnect,
        RequestValidationError,
        HTTPException,
    ):
        app.add_exception_handler(kind, partial(_told, draw))


async def _told(draw: Draw, request: Request, error: Exception) -> Response:
    problem = _problem(error)
    return draw(request, problem) or answer(problem)


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case BadCommand():
            return refused(error)
        case BadCursor():
            return Problem("bad_cursor", str(error))
        case ClientDisconnect():
            return Problem("incomplete", "the connection ended before the body did")
        case RequestValidationError():
            return _invalid(error)
    assert isinstance(error, HTTPException)
    return _http(error)


def _invalid(error: RequestValidationError) -> Problem:
    """The fields that are wrong and why; never their values, which may be secret."""
    fields = [
        {
            "where": ".".join(str(part) for part in e["loc"]),
            "what": field_errors.said(e),
        }
        for e in error.errors()
    ]
    detail = "; ".join(f"{field['where']}: {field['what']}" for field in fields)[:500]
    return Problem("invalid_data", detail, fields=fields[:_MOST_FIELDS])


_OF_STATUS: Final = {
    400: "malformed_json",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "oversized",
    415: "unsupported_media_type",
    429: "rate_limited",
}


def _http(error: HTTPException) -> Problem:
    """The problem for the framework's own errors, such as an unknown path or method."""
    code = _OF_STATUS.get(error.status_code, "internal")
    said = {
        404: "no route has this path; /docs lists them all",
        405: "this path does not take this method; the header Allow names those it takes",
    }.get(error.status_code, str(error.detail))
    return Problem(code, said, headers=error.headers)
