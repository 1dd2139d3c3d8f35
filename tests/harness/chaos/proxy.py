"""A TCP proxy that spoils connections on purpose, and counts what it really did.

It stands in front of a TCP port or a Unix socket. A fault is armed for the proxy and strikes
connections as bytes pass through them (*up* to the server, *down* to the client):

    Delay    every piece of data is held up
    Hole     data vanishes and the connection stays open; one that has lost bytes never recovers
    Cut      after so many bytes of one direction both sides are reset: with ``down`` and 0 bytes
             the request has had its effect, and nobody hears of it
    Refuse   new connections are refused, open ones live on
    Hang     new connections are taken, and nothing ever passes

``match`` narrows a fault to a connection that has just sent these bytes up, such as ``COMMIT``,
and ``times`` says how often it strikes (None: until it is lifted).
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit

Upstream: TypeAlias = "tuple[str, int] | str"
"""A host and a port, or the path of a Unix socket."""
Direction: TypeAlias = Literal["up", "down"]

_PIECE: Final = 65536
_LONGEST_HOLE: Final = 60.0
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds for every piece of data, both ways."""

    seconds: float
    match: bytes = b""
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Hole:
    """Data in these directions vanishes."""

    directions: tuple[Direction, ...] = ("up", "down")
    match: bytes = b""
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Reset after ``after`` bytes of the direction have passed from now on."""

    direction: Direction = "down"
    after: int = 0
    match: bytes = b""
    times: int | None = 1
    skip: int = 0
    """How many occasions it lets pass first."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """New connections are refused by the kernel itself, as if nobody listened."""


@dataclass(frozen=True, slots=True)
class Hang:
    """New connections are taken, and nothing passes."""


Fault: TypeAlias = Delay | Hole | Cut | Refuse | Hang


def upstream_of(url: str) -> Upstream:
    """Where the server behind a URL of Postgres, Redis or HTTP listens."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    if parts.hostname is None:
        asked = parse_qs(parts.query)
        return f"{asked['host'][0]}/.s.PGSQL.{asked['port'][0]}"
    assert parts.port is not None
    return (parts.hostname, parts.port)


def through(url: str, proxy: "Proxy") -> str:
    """The same URL by way of a proxy."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"redis://127.0.0.1:{proxy.port}/0"
    who = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return parts._replace(netloc=f"{who}127.0.0.1:{proxy.port}", query="").geturl()


class Proxy:
    """One listening port before one server; an async context manager."""

    def __init__(self, upstream: Upstream) -> None:
        self.port = 0
        self.stats: Counter[str] = Counter()
        """How often faults struck, by name in lower case. Who tries again is struck again."""
        self.faults: Counter[str] = Counter()
        """Armed faults that struck at all: each counts once, however many retries ran into it."""
        self._met = False
        self._upstream = upstream
        self._fault: Fault | None = None
        self._left: int | None = None
        self._listener: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._skip = 0
        self.healed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deafen()
        self.healed.set()
        await self.sever()

    async def arm(self, fault: Fault) -> None:
        """Let a fault strike, in the place of the one before."""
        self._fault, self._met = fault, False
        self._left = getattr(fault, "times", None)
        self._skip = getattr(fault, "skip", 0)
        self.healed.clear()
        for connection in self._open:
            connection.passed = {"up": 0, "down": 0}
        if isinstance(fault, Refuse):
            self._deafen()
        else:
            await self._listen()

    async def heal(self) -> None:
        """No fault any more. Connections that have lost bytes stay as they are until closed."""
        self._fault = None
        self.healed.set()
        await self._listen()

    async def lead_to(self, upstream: Upstream) -> None:
        """A failover: all connections are reset, and new ones lead elsewhere."""
        self._upstream = upstream
        await self.sever()

    def lead_new_to(self, upstream: Upstream) -> None:
        """A service's address that moves: new connections lead elsewhere, open ones stay."""
        self._upstream = upstream

    async def sever(self) -> None:
        """Reset all connections."""
        tasks = [connection.task for connection in self._open]
        for connection in list(self._open):
            connection.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    def passed(self, direction: Direction) -> int:
        """Bytes that have passed on the connections that are open."""
        return sum(connection.passed[direction] for connection in self._open)

    def strikes(self, kind: type[Fault], asked: bytes) -> bool:
        """Whether an armed fault of that kind strikes a connection that has just ``asked`` this."""
        fault = self._fault
        if not isinstance(fault, kind) or self._left == 0:
            return False
        return getattr(fault, "match", b"") in asked

    def struck(self) -> None:
        """Count a fault that was carried out."""
        name = type(self._fault).__name__.lower()
        self.stats[name] += 1
        self.faults[name] += not self._met
        self._met = True
        if self._left is not None:
            self._left -= 1

    def lets_pass(self) -> bool:
        """Whether this occasion is one of those that a cut skips."""
        if self._skip == 0:
            return False
        self._skip -= 1
        return True

    @property
    def fault(self) -> Fault | None:
        return self._fault

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._taken, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def _deafen(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, task, writer)
        self._open.add(connection)
        try:
            await connection.run(reader, self._upstream)
        finally:
            self._open.discard(connection)


class _Connection:
    """A client and the server behind the proxy, with two pumps between them."""

    def __init__(
        self, proxy: Proxy, task: "asyncio.Task[None]", client: asyncio.StreamWriter
    ) -> None:
        self.task = task
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self._proxy = proxy
        self._writers = [client]
        self._asked = b""
        self._lost: set[Direction] = set()

    async def run(self, reader: asyncio.StreamReader, upstream: Upstream) -> None:
        """Pump until one side has had enough."""
        if self._proxy.strikes(Hang, b""):
            self._proxy.struck()
            self._lost = {"up", "down"}
        try:
            if isinstance(upstream, str):
                server_reader, server = await asyncio.open_unix_connection(upstream)
            else:
                server_reader, server = await asyncio.open_connection(*upstream)
        except OSError:
            self.reset()
            return
        self._writers.append(server)
        pumps = [
            asyncio.create_task(self._pump("up", reader, server)),
            asyncio.create_task(self._pump("down", server_reader, self._writers[0])),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers[0].close()
            if "up" in self._lost:  # the goodbye vanishes too: the server goes on waiting
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._proxy.healed.wait(), _LONGEST_HOLE)
            server.close()

    def reset(self) -> None:
        """RST to both sides: no goodbye."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _pump(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if direction == "up":
                    self._asked = data
                if await self._spoiled(direction, data, writer):
                    continue
                self.passed[direction] += len(data)
                writer.write(data)
                await writer.drain()

    async def _spoiled(
        self, direction: Direction, data: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Do to this piece of data what the armed fault wants; True when it must not pass."""
        proxy = self._proxy
        if direction in self._lost:
            return True
        if proxy.strikes(Hole, self._asked):
            assert isinstance(proxy.fault, Hole)
            if direction in proxy.fault.directions:
                self._lost |= set(proxy.fault.directions)
                proxy.struck()
                return True
        if proxy.strikes(Delay, self._asked):
            assert isinstance(proxy.fault, Delay)
            proxy.struck()
            await asyncio.sleep(proxy.fault.seconds)
        if proxy.strikes(Cut, self._asked):
            assert isinstance(proxy.fault, Cut)
            fault, left = proxy.fault, proxy.fault.after - self.passed[direction]
            if direction == fault.direction and len(data) > left and not proxy.lets_pass():
                proxy.struck()
                writer.write(data[: max(0, left)])
                with contextlib.suppress(OSError):
                    await writer.drain()
                self.reset()
                return True
        return False
