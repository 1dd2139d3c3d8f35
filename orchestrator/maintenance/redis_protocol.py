"""Finds out quickly that a port speaks TLS where the URL does not, or no TLS, or no Redis at all,
and that a URL of a cluster or of Sentinels leads to something else.

A client would wait for its deadline and try again, a quarter of a minute in all, and then only know
that there was no answer. One connection is opened and closed for it.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from typing import Any, Final

from evosaga.events import redis_address, redis_connections
from evosaga.orchestrator.maintenance import redis_topology
from evosaga.orchestrator.maintenance.redis_checks import RedisUnfit

_PATIENCE: Final = 2.0
"""Seconds for the connection, and as many for its first bytes."""
_RESP: Final = b"+-:$*_#,(!=%~>"
"""What a reply of Redis begins with."""
_TLS: Final = (0x14, 0x15, 0x16)
"""What a record of TLS begins with: here an alert about bytes that are none."""


async def require(url: str) -> None:
    """Raise ``RedisUnfit`` when the URL's scheme and what is there do not go together.

    Of several servers, those that answer. Raises ``TimeoutError`` when nothing is said at all, and
    ``OSError`` or ``RedisError`` when nobody is there.
    """
    options, address = redis_connections.options_of(url), redis_address.read(url)
    if "path" in options:
        return
    nodes = address.nodes or ((options.get("host", "localhost"), options.get("port", 6379)),)
    if said := await _spoken(nodes, tls=url.startswith("rediss")):
        raise RedisUnfit(f"EVOSAGA_REDIS_URL: {said}")
    if address.kind != "single" and (said := await redis_topology.misfit(address, options)):
        raise RedisUnfit(f"EVOSAGA_REDIS_URL does not fit that server, {said}")


async def _spoken(nodes: Sequence[tuple[str, int]], *, tls: bool) -> str | None:
    """What is wrong with the protocol of the first one that answers."""
    trouble: OSError | None = None
    for host, port in nodes:
        where = {"host": host, "port": port}
        try:
            return await (_tls_refused(where) if tls else _not_plain(where))
        except OSError as error:  # TimeoutError is one
            trouble = error
    assert trouble is not None
    raise trouble


async def _not_plain(where: dict[str, Any]) -> str | None:
    first = await _first_byte(where)
    if not first or first[0] in _TLS:
        return "that port does not speak plain Redis; if it speaks TLS, write rediss://"
    return None if first in _RESP else "that is not the port of a Redis, but another server's"


async def _first_byte(where: dict[str, Any]) -> bytes:
    """The first byte of the answer to a PING; none when the connection was closed instead.

    The empty line is for servers of HTTP, which would wait for it.
    """
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(**where)
    with contextlib.closing(writer):
        writer.write(b"PING\r\n\r\n")
        async with asyncio.timeout(_PATIENCE):
            try:
                return await reader.read(1)
            except OSError:
                return b""


async def _tls_refused(where: dict[str, Any]) -> str | None:
    """Whether it answers as a Redis without TLS does. Certificates are the client's matter."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(**where, ssl=anybody)
    except (TimeoutError, ssl.SSLError, ConnectionResetError):
        if await _first_byte(where) in {bytes([byte]) for byte in _RESP}:
            return "that port does not speak TLS: write redis://, or switch TLS on there"
        return None
    writer.close()
    return None
