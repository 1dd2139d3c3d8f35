"""Where lists and searches read: the standby, unless whoever asks has written a moment ago.

Who has just written would miss it on a standby that lags. So after a request that may have written,
its sender reads from the primary for longer than a standby that is read may lag: known by a cookie,
whichever process it comes to next, and without cookies by its key in this process.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import Scope

from evosaga.events.database import Pool
from evosaga.orchestrator.api.dependencies import context_of

_COOKIE: Final = "evosaga_wrote"
_SPARE: Final = 2.0
"""Seconds more than the lag: it is looked for once a second."""
_READING: Final = ("GET", "HEAD", "OPTIONS")
_MOST: Final = 10_000
"""Senders that are remembered; of more, the oldest are forgotten."""


class Writers:
    """Who has written in the last seconds, by the digest of the key."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def note(self, key: bytes, seconds: float) -> None:
        """It has written now."""
        self._until.pop(key, None)
        self._until[key] = time.monotonic() + seconds
        while len(self._until) > _MOST:
            del self._until[next(iter(self._until))]

    def wrote(self, key: bytes) -> bool:
        """Whether that was a moment ago."""
        return self._until.get(key, 0.0) > time.monotonic()


async def reads_of(connection: HTTPConnection) -> Pool:
    """The pool that a list reads from, for whoever asks."""
    here = context_of(connection)
    if here.replica is None:
        return here.pool
    writers: Writers = connection.app.state.writers
    key = _key(connection.headers)
    if _COOKIE in connection.cookies or (key is not None and writers.wrote(key)):
        return here.pool
    return await here.replica.pool()


@dataclass(frozen=True, slots=True)
class ReadsFrom:
    """The pool of a request that only reads, and decides nothing."""

    pool: Pool


async def _reads(connection: HTTPConnection) -> ReadsFrom:
    return ReadsFrom(await reads_of(connection))


Reads = Annotated[ReadsFrom, Depends(_reads)]
"""Route dependency: ``async def route(reads: Reads)``."""


def note_writing(scope: Scope, status: int, headers: MutableHeaders) -> None:
    """After a request that may have written: its sender reads from the primary for a while."""
    replica = scope["app"].state.parts.replica
    if replica is None or scope["method"] in _READING or scope["path"].startswith("/webhooks/"):
        return
    if status == HTTPStatus.UNAUTHORIZED:
        return  # keys that are none must not push out those of writers
    seconds = replica.most_lag + _SPARE
    key = _key(Headers(scope=scope))
    if key is not None:
        scope["app"].state.writers.note(key, seconds)
    value = f"{_COOKIE}=1; Max-Age={math.ceil(seconds)}; Path=/; HttpOnly; SameSite=Lax"
    headers.append("set-cookie", value)


def _key(headers: Headers) -> bytes | None:
    given = headers.get("authorization") or headers.get("x-api-key")
    return hashlib.sha256(given.encode()).digest() if given else None
