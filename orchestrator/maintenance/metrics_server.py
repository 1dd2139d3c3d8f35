"""``GET /metrics`` of a worker, on a port of its own, for Prometheus; nothing else is there."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket, render: Callable[[], Awaitable[bytes]], content_type: str
) -> AsyncIterator[None]:
    """Answer while inside. One scrape at a time: each asks the stores."""
    at_once = asyncio.Lock()

    async def metrics(_: web.Request) -> web.Response:
        async with at_once:
            body = await render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()
        listener.close()
