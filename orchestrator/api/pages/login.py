"""Signing in with an API key, and signing out."""

from typing import Final

from fastapi import Request
from starlette.responses import Response

from evosaga.orchestrator.api.auth import (
    COOKIE,
    SESSION_SECONDS,
    authenticator_of,
    identified,
    identify,
)
from evosaga.orchestrator.api.pages.forms import (
    LOGIN,
    Submitted,
    bare,
    fields_of,
    page_router,
    safe_return,
    see_other,
)
from evosaga.orchestrator.api.pages.rendering import HOME, ROOT, respond
from evosaga.orchestrator.api.sessions import ended_of

router: Final = page_router()


@router.get(LOGIN)
async def ask(request: Request) -> Response:
    """The form. A signed-in user is redirected."""
    back = safe_return(request.query_params.get("next", HOME))
    if identify(request) is not None and await identified(request) is not None:
        return see_other(back)
    return respond("login.html", **bare(), next=back, wrong="")


@router.post(LOGIN)
async def sign_in(request: Request) -> Response:
    """Open a session for a key.

    This form carries no token, since there is no session yet; the browser's headers show that it is
    ours, as for every other form (``fields_of``).
    """
    submitted = await fields_of(request)
    back = safe_return(submitted["next"] or HOME)
    session = authenticator_of(request).open_session(submitted["key"])
    if session is None:
        await request.app.state.wrong_keys.another(request)
        wrong = "That is not one of the keys of this installation."
        return respond("login.html", 401, **bare(), next=back, wrong=wrong)
    answer = see_other(back)
    answer.set_cookie(
        COOKIE,
        session,
        max_age=SESSION_SECONDS,
        path="/",
        secure=_https(request),
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post(f"{ROOT}/logout")
async def sign_out(request: Request, submitted: Submitted) -> Response:
    """End the session, in this browser and for every copy of its cookie."""
    session = request.cookies[COOKIE]  # the form has proved that it is there
    until = authenticator_of(request).end_of_session(session)
    if until is not None:
        await ended_of(request).add(session, until)
    answer = see_other(LOGIN)
    answer.delete_cookie(COOKIE, path="/", secure=_https(request), httponly=True, samesite="strict")
    return answer


def _https(request: Request) -> bool:
    """Whether the browser uses https, also behind a proxy."""
    public = request.app.state.parts.settings.public_url or ""
    forwarded = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip()
    # A false claim of https only makes the cookie safer, so the header needs no trust.
    told = forwarded == "https" or request.url.scheme == "https"
    return told or (public.startswith("https://") and _same_host(request, public))


def _same_host(request: Request, public: str) -> bool:
    return request.headers.get("host", "") == public.removeprefix("https://").partition("/")[0]
