"""The listening socket: accept, refuse, and reset all connections as a crash does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from evosaga.orchestrator.local.evolution import responses

BODY_LIMIT = 136 * 2**20
KEEP_ALIVE = 5.0  # as in the real server: a pooled connection may be closed when it is reused

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Door:
    """Serves two kinds of clients: those of the API, and those of the control routes."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._http: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._under_way: dict[asyncio.Task[Any], web.BaseRequest] = {}
        self._controlling: set[RequestHandler] = set()
        self._closed = False

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def open(self, api: Handler, control: Handler, control_prefix: str) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if request.raw_path.startswith(control_prefix):
                return await self._spared(request, control)
            task = asyncio.current_task()
            assert task is not None
            self._under_way[task] = request
            try:
                return await api(request)
            finally:
                del self._under_way[task]

        self._http = web.Server(
            handle, request_factory=_request, access_log=None, keepalive_timeout=KEEP_ALIVE
        )
        await self._listen()

    async def _spared(self, request: web.BaseRequest, work: Handler) -> web.StreamResponse:
        """A client that requests a crash over HTTP must get the answer."""
        self._controlling.add(request.protocol)
        try:
            return await work(request)
        finally:
            self._controlling.discard(request.protocol)

    async def close(self) -> None:
        self._closed = True
        self._stop_listening()
        await self.cut()
        if self._http is not None:
            self._http.pre_shutdown()  # idle control connections, too
            await self._http.shutdown(1.0)

    async def cut(self) -> None:
        """Reset all connections, as a crash does; the task that requests it continues."""
        for task, request in list(self._under_way.items()):
            if task is not asyncio.current_task():
                responses.drop(request.transport)
                task.cancel()
        for connection in self._http.connections if self._http is not None else ():
            if connection not in self._controlling:
                responses.drop(connection.transport)
        await asyncio.sleep(0)  # the sockets are closed in the next iteration of the loop

    async def refuse(self, seconds: float) -> None:
        """Refuse new connections for this long; open ones continue."""
        self._stop_listening()
        await asyncio.sleep(seconds)
        if not self._closed and self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        assert self._http is not None
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._http, self._host, self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: "asyncio.Task[None]"
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=BODY_LIMIT
    )
