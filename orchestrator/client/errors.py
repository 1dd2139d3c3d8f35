"""Errors of the client, by who can put them right."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import httpx


class EvosagaError(Exception):
    """Any answer but the one that was wanted. ``code`` is for programs, the text for people."""

    def __init__(self, code: str, message: str, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.body = dict(body or {})
        """The whole problem document of the server."""
        self.tries = 1
        """How often it was sent. Of an earlier try the answer was lost; it may have been obeyed."""


class BadRequest(EvosagaError):
    """The data is wrong: the calling program must change it."""


class NotAllowed(EvosagaError):
    """The key is wrong or lacks the right: the operator must give another one."""


class NotFound(EvosagaError):
    """There is no such saga or integration, or it is not yours to see."""


class Conflict(EvosagaError):
    """It can't be done as things are, and nothing was touched: look at the state, then decide."""


class AlreadyExists(Conflict):
    """The organization has an integration: delete that one first."""

    @property
    def existing_instance(self) -> str | None:
        """The instance it has."""
        return self.body.get("existing_instance")


class RolledBack(EvosagaError):
    """Something behind evosaga failed, and everything was undone. It can be asked for anew."""

    @property
    def saga_id(self) -> UUID:
        """The saga that tells the story."""
        return UUID(self.body["saga_id"])


class Parked(RolledBack):
    """It failed half-way: an operator of evosaga must look, then replay the saga."""


class NotYet(EvosagaError):
    """It isn't over in the time that was given; it goes on by itself. Nobody's fault."""

    @property
    def saga_id(self) -> UUID:
        """The saga to go on waiting for."""
        return UUID(self.body["saga_id"])


class Busy(EvosagaError):
    """Too many requests or sagas at once: the calling program must slow down."""


class Unavailable(EvosagaError):
    """evosaga, or a server behind it, can't be reached: trying again later may help."""


class ServerFault(EvosagaError):
    """A bug of evosaga: report it with the id that the text names."""


_KINDS: Final[Mapping[int, type[EvosagaError]]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    429: Busy,
    502: RolledBack,
    503: Unavailable,
}


def read(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer below 400. Raises ``ServerFault`` where it is none of evosaga's."""
    try:
        told: dict[str, Any] = dict(answer.json())
    except (ValueError, TypeError):  # another server's page, or a redirect to one
        said = f"something that is no evosaga answered HTTP {answer.status_code}"
        raise ServerFault("not_evosaga", said) from None
    return told


def trouble_in(answer: httpx.Response) -> EvosagaError:
    """The error that an answer of 400 or more stands for."""
    status = answer.status_code
    try:
        body = dict(answer.json())
    except (ValueError, TypeError):  # a proxy's page
        kind = Unavailable if status in (502, 503, 504) else ServerFault
        return kind(f"http_{status}", f"something before evosaga answered HTTP {status}")
    if body.get("success") is False:
        return AlreadyExists("integration_exists", str(body.get("error")), body)
    code, said = str(body.get("code")), str(body.get("detail"))
    if code == "parked":
        return Parked(code, said, body)
    return _KINDS.get(status, BadRequest if status < 500 else ServerFault)(code, said, body)
