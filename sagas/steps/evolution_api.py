"""The Evolution API server, as far as an outcome can be known from what it answers.

Evolution has no idempotency key, its 201 can be false and its DELETE answers before deleting.
So an answer is only evidence. ``VERDICTS`` says, as data, what each answer to a create proves;
``look`` finds out what really is there. Ownership is asked in one call: Evolution's guards run
in the order exists (404), then key (401), so with our own instance token as the key,
``connectionState`` says absent, not ours, or ours. Deletes always carry that token, never the
global key: a compare-and-delete. (All as observed on Evolution 2.3.6 and 2.3.7.)
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

_LARGEST_BODY: Final = 1024 * 1024
_LARGEST_LIST: Final = 64 * 1024 * 1024


class Verdict(StrEnum):
    LANDED = "landed"
    REJECTED = "rejected"
    """Refused for good, and nothing was made."""
    NOT_SENT = "not sent"
    AMBIGUOUS = "ambiguous"
    """It may have happened, or may happen yet: look."""
    OUTAGE = "outage"
    """Nobody was home (503): wait, but look first, since a proxy may have answered."""
    MISCONFIGURED = "misconfigured"
    """A person must mend the set-up (wrong key, no licence, wrong URL); sagas wait meanwhile."""
    BUSY = "busy"
    """Asked to come back later (429)."""


class Sight(StrEnum):
    """What a look at an instance found."""

    MINE = "mine"
    FOREIGN = "foreign"
    ABSENT = "absent"
    HALF = "half"
    """One of Evolution's two views has it, the other not."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, or (status 0) what went wrong instead. ``text`` never holds a body."""

    status: int
    body: Any
    text: str
    sent: bool = True
    retry_after: float | None = None


# What each answer to POST /instance/create proves: the first row that fits. A 400 is rarely a
# plain refusal: any exception inside a create answers 400 and removes *by name* a moment later.
VERDICTS: Final[tuple[tuple[int | range, str, Verdict], ...]] = (
    (201, "", Verdict.LANDED),
    (400, "invalid integration", Verdict.REJECTED),
    (400, "does not match pattern", Verdict.REJECTED),
    (400, "is required", Verdict.REJECTED),
    (400, "cannot be empty", Verdict.REJECTED),
    (400, "invalid proxy", Verdict.REJECTED),
    (401, "", Verdict.MISCONFIGURED),
    (404, "", Verdict.MISCONFIGURED),
    (range(300, 400), "", Verdict.MISCONFIGURED),
    (range(413, 416), "", Verdict.REJECTED),
    (429, "", Verdict.BUSY),
    (503, "license_required", Verdict.MISCONFIGURED),
    (503, "", Verdict.OUTAGE),
    (range(1000), "", Verdict.AMBIGUOUS),
)


def classify_create(answer: Answer) -> Verdict:
    """What an answer to a create proves."""
    if not answer.sent:
        return Verdict.NOT_SENT
    said = json.dumps(answer.body).lower() if answer.body is not None else ""
    for status, words, verdict in VERDICTS:
        fits = answer.status == status if isinstance(status, int) else answer.status in status
        if fits and words in said:
            return verdict
    return Verdict.AMBIGUOUS


class EvolutionApi:
    """A client of one server. Use as an async context manager.

    No method raises for what the server or the network does; they answer with evidence.
    ``timeout`` is in seconds and bounds a whole call, however slowly the bytes trickle.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        before_send: Callable[[], None] = lambda: None,
    ) -> None:
        """``before_send`` may raise to keep a worker that is no longer in charge from acting."""
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._timeout = timeout
        self._before_send = before_send
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=128, keepalive_timeout=4.0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # aiohttp would silently send a GET or DELETE again when a kept connection breaks. A
        # second DELETE is a removal of its own on Evolution, so nothing is sent that we don't send.
        session._retry_connection = False
        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(client=session),
            base_url=self.url,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(self._timeout, connect=5.0),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def create(self, payload: dict[str, Any]) -> Answer:
        """POST /instance/create with the global key."""
        return await self._call("POST", "/instance/create", self._api_key, payload)

    async def delete(self, name: str, token: str) -> Answer:
        """DELETE the instance if, and only if, it carries this token."""
        return await self._call("DELETE", f"/instance/delete/{name}", token)

    async def connect(self, name: str, token: str, number: str | None) -> Answer:
        """Start pairing and ask for the QR code; takes two seconds on a closed instance."""
        query = f"?number={number}" if number else ""
        return await self._call("GET", f"/instance/connect/{name}{query}", token)

    async def instances(self) -> Answer:
        """Every instance of the server, as its database has them."""
        path = "/instance/fetchInstances"
        return await self._call("GET", path, self._api_key, largest=_LARGEST_LIST)

    async def look(self, name: str, token: str) -> Sight:
        """What is there under this name, in both of Evolution's views."""
        memory = await self._call("GET", f"/instance/connectionState/{name}", token)
        match memory.status:
            case 401:
                return await self._look_again_with_global_key(name, token)
            case 200 if _has_state(memory.body):
                return Sight.MINE
            case 200:  # a row without a live instance behind it
                return Sight.HALF
            case 404:
                return await self._look_in_database(name, token)
            case _:
                return Sight.UNKNOWN

    async def _look_again_with_global_key(self, name: str, token: str) -> Sight:
        """It is there and refused our token: a stranger's, unless Evolution's database is down.

        Tokens live in the database, so without it even our own is refused.
        """
        path = f"/instance/fetchInstances?instanceName={name}"
        found = await self._call("GET", path, self._api_key)
        if found.status == 200 and isinstance(found.body, list):
            for row in found.body:
                if isinstance(row, dict) and row.get("name") == name and row.get("token"):
                    return Sight.MINE if row["token"] == token else Sight.FOREIGN
            return Sight.HALF  # in memory, without a row behind it, so no token opens it
        return Sight.UNKNOWN

    async def _look_in_database(self, name: str, token: str) -> Sight:
        """Memory has it not: does a row remain?

        Asked with the instance's own token the list shows only its row, or 401 when no row has
        that token. Without its database Evolution answers 401 as well, so only the whole list,
        asked with the global key, makes an absence certain.
        """
        own = await self._call("GET", "/instance/fetchInstances", token)
        if own.status == 404 and name in json.dumps(own.body):
            return Sight.HALF  # our token opened it, so there is a row, and nothing behind it
        if own.status == 200 and name in _names(own):
            return Sight.HALF
        if own.status not in (200, 401):
            return Sight.UNKNOWN
        everything = await self.instances()
        if everything.status != 200 or not isinstance(everything.body, list):
            return Sight.UNKNOWN
        return Sight.HALF if name in _names(everything) else Sight.ABSENT

    async def _call(
        self,
        method: str,
        path: str,
        key: str,
        payload: dict[str, Any] | None = None,
        *,
        largest: int = _LARGEST_BODY,
    ) -> Answer:
        assert self._client is not None, "use EvolutionApi as a context manager"
        request = self._client.build_request(method, path, headers={"apikey": key}, json=payload)
        # Names are checked long before; should one slip through, httpx would quietly turn
        # "/delete/.." into another path, so look at what would really be sent.
        if not request.url.raw_path.decode().endswith(path):
            raise ValueError("an instance name changed the path of a request")
        self._before_send()
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.send(request, stream=True)
                try:
                    return await _read(response, largest, self._api_key)
                finally:
                    await response.aclose()
        except (httpx.HTTPError, aiohttp.ClientError, OSError, TimeoutError) as error:
            return Answer(0, None, _sentence(error), sent=_may_have_been_sent(error))


def _may_have_been_sent(error: BaseException) -> bool:
    """Only an error of connecting proves that nothing was sent.

    The aiohttp transport reports a connection that broke *after* the request as ConnectTimeout
    too, so what counts is the cause underneath.
    """
    cause = error.__cause__ or error
    return not isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


async def _read(response: httpx.Response, largest: int, secret: str) -> Answer:
    raw = bytearray()
    async for chunk in response.aiter_bytes():
        raw += chunk
        if len(raw) > largest:
            return Answer(response.status_code, None, f"HTTP {response.status_code}, too large")
    try:
        # What the server says may end up in an error text, so it can't be trusted with the key.
        body = json.loads(raw.replace(secret.encode(), b"[redacted]"))
    except (ValueError, RecursionError):
        body = None
    return Answer(
        response.status_code,
        body,
        f"HTTP {response.status_code}",
        retry_after=_seconds(response.headers.get("retry-after")),
    )


def _names(listed: Answer) -> list[Any]:
    rows = listed.body if isinstance(listed.body, list) else []
    return [row.get("name") for row in rows if isinstance(row, dict)]


def _has_state(body: Any) -> bool:
    return (
        isinstance(body, dict)
        and isinstance(body.get("instance"), dict)
        and bool(body["instance"].get("state"))
    )


def _seconds(text: str | None) -> float | None:
    try:
        return min(300.0, max(0.0, float(text))) if text else None
    except ValueError:
        return None


def _sentence(error: BaseException) -> str:
    """The kind of trouble, without the URL or headers an exception's text may carry."""
    if isinstance(error, TimeoutError):
        return "nothing in time"
    return type(error.__cause__ or error).__name__
