"""A session with a server, and its errors as one sentence each that names the cure."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

import httpx

from evosaga.events.connection_errors import reason
from evosaga.orchestrator.cli.errors import UNREACHABLE, WRONG, CliError
from evosaga.orchestrator.client import (
    BadRequest,
    Busy,
    Client,
    Conflict,
    EvosagaError,
    NotAllowed,
    NotFound,
    ServerFault,
    Unavailable,
)

if TYPE_CHECKING:
    from evosaga.orchestrator.cli.remote.target import Target

_TRIES: Final = 2
"""Sent so often until the server is said not to answer: somebody is waiting at a terminal."""
_ANSWERING: Final = 10.0
_LOOKING: Final = 120.0
"""Seconds for one answer, beside those that were asked for. A server that is cut off begins its
look anew, and lists of a large Evolution take longer than a database."""
_LONGEST: Final = 600.0
"""Seconds that a server waits for repairs, whoever asks."""


def wait_of(timeout: float) -> str:
    """The parameter ``wait`` for a ``--timeout``. Raises ``CliError`` for one that is too long."""
    if timeout > _LONGEST:
        said = f"--timeout: over HTTP it is {_LONGEST:g} at most"
        raise CliError(WRONG, f"{said}; what is not over by then goes on, so ask again later")
    return f"{timeout:g}"


@contextlib.asynccontextmanager
async def connect(target: Target, *, looks: bool = False) -> AsyncIterator[Client]:
    """A client of the server. Raises ``CliError`` for whatever goes wrong with it.

    ``looks``: the server asks its own servers before it answers, which may take longer.
    """
    from evosaga.sagas.whatsapp.evolution.tls import trusted

    tls = trusted(trust_env=True) if target.url.startswith("https") else None
    with explaining(target):
        patience = _LOOKING if looks else _ANSWERING
        at = Client(target.url, target.api_key, timeout=patience, tries=_TRIES, verify=tls)
        async with at as client:
            yield client


@contextlib.contextmanager
def explaining(target: Target) -> Iterator[None]:
    """Turn the client's errors into trouble that names the server and the cure."""
    try:
        yield
    except EvosagaError as error:
        raise explained(error, target) from error


def explained(error: EvosagaError, target: Target) -> CliError:
    """The trouble behind an error of the client."""
    where, source = target.url, target.source
    match error:
        case Unavailable(code="unreachable"):
            return _unreached(error, target)
        case Unavailable():
            return CliError(UNREACHABLE, f"the server at {where} says: {error.message}")
        case NotAllowed(code="unauthorized"):
            said = f"the server at {where} does not know the API key ({source})"
            return CliError(WRONG, f"{said}: give another --api-key, or run `evosaga login`")
        case NotAllowed():
            return CliError(WRONG, f"this API key may not do that ({source}): {error.message}")
        case NotFound(code="not_found") | EvosagaError(code="method_not_allowed"):
            said = f"the server at {where} does not have that route"
            cure = "it runs an older release, so update it; or the address has a path too many"
            return CliError(WRONG, f"{said}: {cure} ({source})")
        case NotFound(code="unknown_saga"):
            return CliError(WRONG, f"{error.message}: see `evosaga list`")
        case NotFound():
            return CliError(WRONG, error.message)
        case Busy():
            return CliError(UNREACHABLE, f"the server at {where} is busy: {error.message}")
        case Conflict():
            return CliError(WRONG, f"the command was refused: {error.message} ({error.code})")
        case ServerFault() if error.code == "not_evosaga" or error.code.startswith("http_"):
            said = f"{where} is no evosaga server ({error.message})"
            return CliError(WRONG, f"{said}: is the address right? It comes from: {source}")
        case ServerFault():
            said = f"the server at {where} has a bug: {error.message}"
            return CliError(UNREACHABLE, f"{said}. Please report it with that id")
        case BadRequest():
            return CliError(WRONG, error.message)
    return CliError(WRONG, f"the server at {where} says: {error.message} ({error.code})")


def _unreached(error: EvosagaError, target: Target) -> CliError:
    """No answer came at all; the cause tells why."""
    where, source = target.url, target.source
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = f"the certificate of {where} can't be trusted ({cause.verify_message})"
            cure = "name the authority's file in SSL_CERT_FILE, or correct the address"
            return CliError(UNREACHABLE, f"{said}: {cure}")
        if isinstance(cause, ssl.SSLError):
            said = f"{where} speaks no TLS"
            return CliError(UNREACHABLE, f"{said}: is it http:// instead of https://? ({source})")
    if any(isinstance(cause, httpx.RemoteProtocolError) for cause in causes):
        said = f"{where} does not speak HTTP"
        return CliError(UNREACHABLE, f"{said}: is it https:// or another port? ({source})")
    why = reason(error.__cause__ or error)
    said = f"the server at {where} can't be reached ({why})"
    return CliError(UNREACHABLE, f"{said}: is it running, and is the address right? ({source})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
