"""Who is asking: an API key in a header, or the dashboard's session cookie.

Keys are compared as hashes, in constant time and all of them, so that neither a key nor the
number of keys can be had from how long an answer takes. A key with an organization sees and
steers only that one; somebody else's looks exactly like nothing at all.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from itsdangerous import BadData, Signer, URLSafeTimedSerializer
from starlette.requests import HTTPConnection

from evosaga.events.database import TRANSIENT
from evosaga.orchestrator.api.problems import Problem
from evosaga.orchestrator.api.query_params import check_parameters
from evosaga.orchestrator.api.sessions import ended_of
from evosaga.orchestrator.config.api_keys import ApiKey, digest

COOKIE: Final = "evosaga_session"
CSRF_HEADER: Final = "X-CSRF-Token"
SESSION_SECONDS: Final = 12 * 3600
_JWT: Final = "eyJ"
"""How every JSON Web Token begins: a proxy's, which it shows with each request. Nobody guesses."""
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="evosaga"'}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Without an organization: an operator, who sees everything."""

    name: str
    organization_id: UUID | None = None


class Authenticator:
    """Knows the keys, and signs the sessions that the dashboard opens with them.

    A session is a signed value without a server-side record: it names a key and ends with that
    key, when it is removed or changed; after twelve hours; or when it is signed out, which is
    recorded (``sessions``). ``secrets_`` are those of ``EVOSAGA_SECRET_KEY``: the first signs, all
    are recognised. Sessions and forms have salts of their own, so that neither passes as the other.
    """

    def __init__(self, keys: Sequence[ApiKey], secrets_: Sequence[str]) -> None:
        self._keys = tuple(keys)
        oldest_first = list(reversed(secrets_))
        how: dict[str, Any] = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        self._sessions = URLSafeTimedSerializer(oldest_first, "evosaga/session", signer_kwargs=how)
        self._forms = Signer(oldest_first, "evosaga/csrf", **how)

    def caller_for_key(self, key: str) -> Caller | None:
        """Whose key that is."""
        found = self._holder(digest(key))
        return Caller(found.name, found.organization_id) if found else None

    def open_session(self, key: str) -> str | None:
        """The cookie's value for whoever has that key, None when nobody has."""
        holder = self._holder(digest(key))
        if holder is None:
            return None
        claims = {"name": holder.name, "key": _mark(holder), "nonce": secrets.token_hex(8)}
        return str(self._sessions.dumps(claims))

    def end_of_session(self, value: str) -> datetime | None:
        """When that session ends by itself, None when it is none of ours."""
        found = self._read_session(value)
        return found[1] if found else None

    def caller_for_session(self, value: str) -> Caller | None:
        """Whose session that is; None when it is forged, over, or its key is gone."""
        found = self._read_session(value)
        if found is None or found[1].timestamp() < time.time():
            return None
        claims, _ = found
        for key in self._keys:
            if key.name == claims["name"] and hmac.compare_digest(_mark(key), claims["key"]):
                return Caller(key.name, key.organization_id)
        return None

    def _read_session(self, value: str) -> tuple[dict[str, str], datetime] | None:
        """The claims of a session of ours and when it ends, None when it is none."""
        try:
            # Without max_age, which refuses a session of a process whose clock is a second ahead.
            claims, since = self._sessions.loads(_bytes(value), return_timestamp=True)
        except BadData:
            return None
        return claims, since + timedelta(seconds=SESSION_SECONDS)

    def csrf_token(self, session: str) -> str:
        """What a form of that session must carry, to prove that it is a form of ours."""
        return self._forms.get_signature(_bytes(session)).decode()

    def csrf_holds(self, session: str, token: str) -> bool:
        """Whether a form with that token was made for that session."""
        return self._forms.verify_signature(_bytes(session), _bytes(token))

    def _holder(self, wanted: bytes) -> ApiKey | None:
        found = None
        for key in self._keys:  # all of them, whichever it is
            if hmac.compare_digest(key.digest, wanted):
                found = key
        return found


def authenticator_of(connection: HTTPConnection) -> Authenticator:
    """The doorkeeper of the application that is being asked."""
    doorkeeper: Authenticator = connection.app.state.doorkeeper
    return doorkeeper


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and with which session; None: with a key."""

    caller: Caller
    session: str | None = None


def identify(request: HTTPConnection) -> Identity | None:
    """Who asks, as far as can be told at once; None: nobody that we know.

    A session that was signed out at another process is found out by ``identified`` alone.
    """
    doorkeeper = authenticator_of(request)
    for key in _keys_in(request):
        if (holder := doorkeeper.caller_for_key(key)) is not None:
            return Identity(holder)
    session = request.cookies.get(COOKIE)
    if "x-api-key" in request.headers or not session or ended_of(request).knows(session):
        return None
    holder = doorkeeper.caller_for_session(session)
    return Identity(holder, session) if holder else None


async def identified(request: Request) -> Identity | None:
    """Who asks. Raises the 429 for too many wrong keys, and what Postgres raises."""
    found = identify(request)
    if found is None and any(not key.startswith(_JWT) for key in _keys_in(request)):
        await request.app.state.wrong_keys.another(request)
    if found is None or found.session is None:
        return found
    try:
        return None if await ended_of(request).has(found.session) else found
    except TRANSIENT:
        if request.method not in _SAFE:
            raise
        return found  # what could be read is in Postgres; the first page must say that it is away


async def caller(
    request: Request,
    _bearer: Annotated[Any, Security(HTTPBearer(auto_error=False, scheme_name="Bearer"))] = None,
    _header: Annotated[
        Any, Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="X-API-Key"))
    ] = None,
) -> Caller:
    """The dependency of every route that needs to know who asks. Raises the 401 of all of them,
    and the 422 for a parameter that the route does not have.
    """
    found = await identified(request)
    if found is None:
        raise Problem(
            "unauthorized",
            "send one of EVOSAGA_API_KEYS as `Authorization: Bearer …` or as `X-API-Key`",
            headers=_CHALLENGE,
        )
    if found.session is not None and request.method not in _SAFE:
        token = request.headers.get(CSRF_HEADER, "")
        if not authenticator_of(request).csrf_holds(found.session, token):
            raise Problem("forbidden", f"with a session, send its token in {CSRF_HEADER}")
    who = found.caller
    request.app.state.rates.spend(who.name)
    request.state.caller = who
    check_parameters(request)
    return who


CurrentCaller = Annotated[Caller, Depends(caller)]
"""For a route's signature: ``async def route(who: Who)``."""


def visible(who: Caller, organization_id: UUID | None) -> bool:
    """Whether what belongs to that organization may be seen, and steered, by this caller."""
    return who.organization_id is None or who.organization_id == organization_id


async def operator(who: CurrentCaller) -> Caller:
    """The dependency of routes that show all organizations at once."""
    if who.organization_id is not None:
        raise Problem("forbidden", "this needs a key without an organization")
    return who


def _keys_in(request: HTTPConnection) -> list[str]:
    """The keys in the headers.

    Authorization may be a proxy's: Basic, or a token of its own. What is none of our keys there
    must not stand before the one in X-API-Key, nor before a session.
    """
    told = (one.partition(" ") for one in request.headers.getlist("authorization"))
    bearers = [key.strip() for scheme, _, key in told if scheme.lower() == "bearer"]
    return bearers + request.headers.getlist("x-api-key")


def _mark(key: ApiKey) -> str:
    """What ties a session to a key without telling anything about it."""
    return hashlib.sha256(b"evosaga/session/" + key.digest).hexdigest()[:32]


def _bytes(text: str) -> bytes:
    """Text of a request, which may hold what is no character."""
    return text.encode("utf-8", "surrogateescape")
