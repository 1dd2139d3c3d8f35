"""What people are told of a connection that did not work: never the name of a library's class."""

import socket
import ssl

import aiohttp
import httpx
import pytest
import redis
from aiohttp.client_reqrep import ConnectionKey

from evosaga.events.connection_errors import reason

_WHERE = ConnectionKey("example.org", 443, True, True, None, None, None)


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "hunter2"), "connection refused"),
        (TimeoutError(), "no answer in time"),
        (socket.gaierror(-2, "Name or service not known"), "its name is not known"),
        (ssl.SSLCertVerificationError("hunter2"), "its certificate is not trusted"),
        (ssl.SSLError(1, "wrong version number"), "no TLS there"),
        (OSError(113, "No route to host"), "no route to host"),
        (
            aiohttp.ClientConnectorError(_WHERE, ConnectionRefusedError()),
            "connection refused",
        ),
        (aiohttp.ClientConnectorDNSError(_WHERE, OSError(-2, "no")), "its name is not known"),
        (OSError(101, "Connect call failed ('10.0.0.7', 443)"), "network is unreachable"),
        (aiohttp.ServerDisconnectedError(), "connection closed"),
        (caused(httpx.ConnectTimeout("x"), aiohttp.ServerDisconnectedError()), "connection closed"),
        (httpx.DecodingError("x"), "the answer can't be decoded"),
        (redis.ConnectionError("to hunter2@cache"), "no connection"),
        (caused(redis.ConnectionError("x"), ConnectionResetError(104, "y")), "connection reset"),
    ],
)
def test_it_is_said_in_a_few_words(error: BaseException, words: str) -> None:
    assert reason(error) == words
