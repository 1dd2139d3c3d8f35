"""Authentication of pages, CSRF protection of forms, and errors as pages.

A page is read with a session, or with a key in a header as on every other route. A form needs the
session's own token, since browsers send cookies with any site's form.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import structlog
from asyncpg import UndefinedColumnError, UndefinedTableError
from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from redis.exceptions import RedisError
from starlette.responses import RedirectResponse, Response

from evosaga.events.commands import BadCommand
from evosaga.events.database import TRANSIENT
from evosaga.orchestrator.api.auth import COOKIE, Caller, authenticator_of, identified, identify
from evosaga.orchestrator.api.dependencies import AppContext, context_of
from evosaga.orchestrator.api.pages.rendering import HEADERS, HOME, ROOT, respond, sentence
from evosaga.orchestrator.api.problems import TITLES, Problem

_logger = structlog.get_logger("evosaga.dashboard")
LOGIN: Final = f"{ROOT}/login"
_FIELDS: Final = 50


class PageProblem(Exception):
    """A page that cannot be shown, and what the user can do about it."""

    def __init__(self, status: int, title: str, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.title = title
        self.said = said


class SignIn(Exception):
    """Sign-in is needed; ``back`` is the page to return to."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


def absent(what: str) -> PageProblem:
    """The same answer for what does not exist and for what the caller may not see."""
    return PageProblem(404, "Nothing here", f"There is no such {what}.")


class PageRoute(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except SignIn as missing:
                return _to_login(request, missing.back)
            except (PageProblem, Problem, BadCommand, RedisError, *_AWAY) as error:
                return trouble(request, error)

        return handled


_AWAY: Final = (*TRANSIENT, UndefinedTableError, UndefinedColumnError)


def page_router() -> APIRouter:
    """A router for the pages of one topic. Pages are not part of the OpenAPI document."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def trouble(request: Request, error: Exception) -> Response:
    """The error as a page that names the cure and no internals."""
    match error:
        case PageProblem():
            problem = error
        case Problem(code="rate_limited"):
            problem = PageProblem(429, "Too fast", f"Slow down a little: {error.detail}.")
        case Problem(code="not_found"):
            problem = PageProblem(404, "Nothing here", "There is no such page.")
        case Problem():
            title = TITLES[error.code][1]
            problem = PageProblem(error.status_code, title, sentence(str(error.detail)))
        case BadCommand():
            problem = PageProblem(409, "That can't be done", sentence(error.message))
        case RedisError():
            problem = PageProblem(503, "Redis is away", _REPEAT)
        case UndefinedTableError() | UndefinedColumnError():
            cure = "The database's schema is not this release's. Run `evosaga migrate`."
            problem = PageProblem(503, "The schema is old", cure)
        case _:
            _logger.warning("page without Postgres", error=type(error).__name__)
            problem = PageProblem(503, "Postgres is away", _REPEAT)
    found = identify(request)
    return respond(
        "problem.html",
        problem.status,
        **frame(request, found.caller, "") if found else bare(),
        problem=problem,
    )


def trouble_of_a_page(request: Request, problem: Problem) -> Response | None:
    """The problem as a page where a page was requested; None for all other addresses."""
    path = request.url.path
    if path not in (HOME, ROOT) and not path.startswith(f"{ROOT}/"):
        return None
    page = trouble(request, problem)
    page.headers.update(problem.headers or {})
    return page


_REPEAT: Final = "It can't be reached right now. Nothing is lost; reload the page in a moment."


async def reader(request: Request) -> Caller:
    """The dependency of every page. Raises ``SignIn``, and 429 when the rate limit is reached."""
    found = await identified(request)
    if found is None:
        raise SignIn(_path(request))
    who = found.caller
    request.app.state.rates.spend(who.name)
    request.state.caller = who
    return who


Reader = Annotated[Caller, Depends(reader)]
"""Route dependency: ``async def page(request: Request, who: Reader)``."""


@dataclass(frozen=True, slots=True)
class Form:
    """A submitted form: its fields by name, stripped."""

    fields: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.fields.get(name, "")


async def fields_of(request: Request) -> Form:
    """The fields of a form from one of our pages. Raises ``PageProblem``."""
    if not _from_our_pages(request):
        said = (
            "It came from a page of another site, so nothing was done. If a proxy stands in "
            "between, let it hand on the header Host, or set EVOSAGA_PUBLIC_URL."
        )
        raise PageProblem(403, "That form is not ours", said)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise PageProblem(415, "No form", "This address takes forms of the dashboard only.")
    try:
        raw = (await request.body()).decode("ascii")
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError:
        raise PageProblem(400, "Unreadable form", "That form can't be read.") from None
    if any("\0" in value for _, value in pairs):
        raise PageProblem(400, "Unreadable form", "A NUL can't be stored.")
    return Form({name: value.strip() for name, value in pairs})


def _from_our_pages(request: Request) -> bool:
    """Whether the form came from our pages by the browser's headers; true for other clients.

    A session's forms also have a token. This protects the sign-in form, which has no session yet:
    another site must not sign a user in with that site's key.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    if origin is None:
        return True
    public = urlsplit(request.app.state.parts.settings.public_url or "").netloc
    return urlsplit(origin).netloc in {request.headers.get("host", ""), public} - {""}


async def form(request: Request) -> Form:
    """The dependency of every route that changes something. Raises ``PageProblem``."""
    submitted = await fields_of(request)
    session = request.cookies.get(COOKIE, "")
    if not session or not authenticator_of(request).csrf_holds(session, submitted["csrf"]):
        raise PageProblem(
            403,
            "That form is too old",
            "It does not belong to this session, so nothing was done. Go back, reload the page "
            "and try again.",
        )
    return submitted


Submitted = Annotated[Form, Depends(form)]


def frame(request: Request, who: Caller, here: str) -> dict[str, Any]:
    """Template variables of every page with a session. ``here`` is the active navigation entry."""
    session = request.cookies.get(COOKIE, "")
    return {
        "who": who,
        "here": here,
        "csrf": authenticator_of(request).csrf_token(session) if session else "",
        "static": f"{ROOT}/static",
        "whatsapp": parts(request).whatsapp,
        "searched": "",
    }


def bare() -> dict[str, Any]:
    """The same without a session."""
    return {
        "who": None,
        "here": "",
        "csrf": "",
        "static": f"{ROOT}/static",
        "whatsapp": False,
        "searched": "",
    }


def parts(request: Request) -> AppContext:
    """The parts of the request's application."""
    return context_of(request)


def see_other(location: str) -> Response:
    """Redirect (303) to one of our pages."""
    return RedirectResponse(location, 303, dict(HEADERS))


def safe_return(location: str) -> str:
    """Where to go after signing in: always one of our pages, whatever the address says."""
    fits = location == HOME or location.startswith((f"{HOME}?", f"{ROOT}/"))
    plain = location.isascii() and location.isprintable() and "\\" not in location
    return location if fits and plain and not location.startswith(LOGIN) else HOME


def _path(request: Request) -> str:
    query = f"?{request.url.query}" if request.url.query else ""
    return request.url.path + query


def _to_login(request: Request, back: str) -> Response:
    location = LOGIN if back == HOME else f"{LOGIN}?next={quote(safe_return(back), safe='')}"
    if "hx-request" in request.headers:  # a fragment of a page: the whole page has to change
        return Response(status_code=204, headers={**HEADERS, "HX-Redirect": location})
    if request.method != "GET":
        location = LOGIN
    return see_other(location)
