"""What kept a connection from working, in a few words for people: never a library's class name.

Nothing of an exception's own text is repeated: it may carry addresses, headers or passwords.
"""

import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "connection refused"),
    (ConnectionResetError, "connection reset"),
    (BrokenPipeError, "connection closed"),
    (ConnectionAbortedError, "connection closed"),
    (FileNotFoundError, "no such socket"),
    (PermissionError, "permission denied"),
    (socket.gaierror, "its name is not known"),
    (ssl.SSLCertVerificationError, "its certificate is not trusted"),
    (ssl.CertificateError, "its certificate is not trusted"),
    (ssl.SSLError, "no TLS there"),
    (TimeoutError, "no answer in time"),
    (EOFError, "connection closed"),
)
# By name, so that none of these libraries has to be imported.
_NAMED: Final = {
    "BadHttpMessage": "what came is no HTTP",
    "ClientConnectorDNSError": "its name is not known",
    "ClientPayloadError": "the answer broke off",
    "ClientResponseError": "what came is no HTTP",
    "ConnectionClosedError": "connection closed",
    "ConnectionDoesNotExistError": "connection closed",
    "DecodingError": "the answer can't be decoded",
    "ReadError": "the answer broke off",
    "RemoteProtocolError": "what came is no HTTP",
    "ServerDisconnectedError": "connection closed",
}
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_EMPTY: Final = {
    "",
    "os",
    "redis",
    "client",
    "connection",
    "client connector",
    "client os",
    "connect",
}


def reason(error: BaseException) -> str:
    """A few words; of a chain of exceptions, those of the first one that says something."""
    chain = list(_chain(error))
    for one in chain:
        for kind, words in _REASONS:
            if isinstance(one, kind):
                return words
    # The system's words for the number: asyncio puts the address into its own.
    numbers = (one.errno for one in chain if isinstance(one, OSError))
    if said := next((os.strerror(one) for one in numbers if one and one > 0), None):
        return said[0].lower() + said[1:]
    for one in reversed(chain):
        if (words_of := _NAMED.get(type(one).__name__)) is not None:
            return words_of
    name = _WORDS.sub(" ", type(error).__name__.removesuffix("Error")).lower()
    return "no connection" if name in _EMPTY else name


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from; aiohttp keeps that in an attribute of its own."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        inner = getattr(one, "os_error", None) or getattr(one, "certificate_error", None)
        if isinstance(inner, BaseException):
            yield inner
        one = one.__cause__ or one.__context__
