"""One HTTP POST to a receiver outside: bounded, never redirected, and to no private address.

The address is looked at where it is resolved, and the connection goes to the address that was
looked at, so a name that resolves otherwise a moment later leads nowhere else.
"""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from evosaga.events.connection_errors import reason
from evosaga.events.retry_after import seconds_of

_TIMEOUT: Final = 10.0
_READ: Final = 2048
_LONGEST_WAIT: Final = 3600.0
_AGENT: Final = "evosaga (https://www.standardwebhooks.com)"
PRIVATE: Final = "its address is private; if that is meant, set EVOSAGA_RECEIVERS_PRIVATE=true"


class PrivateAddress(OSError):
    """The name leads into a private network, or to this machine."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a POST ended. ``error`` quotes neither the URL nor the answer's body."""

    ok: bool
    error: str = ""
    retry_after: float | None = None


class _PublicResolver(AbstractResolver):
    """Resolves names, and refuses those of which any address is not a public one."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(public(one["host"]) for one in found):
            raise PrivateAddress(PRIVATE)
        return found

    async def close(self) -> None:
        await self._inner.close()


def public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is not None:
            return public(str(inner))
        if found in _NAT64 or found in _COMPATIBLE:
            return public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast


_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
"""IPv4 addresses as an older form of IPv6 has them."""


async def post(
    url: str, body: bytes, headers: Mapping[str, str], *, private: bool, timeout: float = _TIMEOUT
) -> Answer:
    """Send it once. ``private``: private addresses are allowed. ``timeout``: seconds for all."""
    try:
        target = URL(url)
        if not private and target.host and _is_literal(target.host) and not public(target.host):
            return Answer(False, PRIVATE)
        # A session of its own each time: what posts to strangers shares nothing with anything.
        connector = aiohttp.TCPConnector(resolver=None if private else _PublicResolver(), limit=1)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            ) as session,
            session.post(
                target,
                data=body,
                headers={"User-Agent": _AGENT, **headers},
                allow_redirects=False,
            ) as answer,
        ):
            await answer.content.read(_READ)
            return _judge(answer.status, answer.headers)
    except TimeoutError:
        return Answer(False, f"no answer within {timeout:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if _private(error):
            return Answer(False, PRIVATE)
        return Answer(False, f"could not be reached: {reason(error)}")


def _judge(status: int, headers: Mapping[str, str]) -> Answer:
    if 200 <= status < 300:
        return Answer(True)
    said = f"HTTP {status}"
    if 300 <= status < 400:
        said += ": redirects are not followed; set the address where it leads"
    if status == 410:
        said += ": the receiver says that it is gone for good"
    return Answer(False, said, seconds_of(headers, _LONGEST_WAIT))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _private(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, PrivateAddress):
            return True
        error = error.__cause__ or error.__context__
    return False
