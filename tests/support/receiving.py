"""A receiver of alerts and events on a real HTTP server, which can be told to misbehave."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Received:
    """One request that came in."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def verifies(self, secret: str) -> bool:
        """Whether a signature is by that secret, checked as Standard Webhooks describes it."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        id_, at = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        content = f"{id_}.{at}.".encode() + self.body
        wanted = "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
        return wanted in self.headers["webhook-signature"].split(" ")


@dataclass
class StubReceiver:
    """``status`` is what it answers; ``hangs``: it takes the request and never answers."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    received: list[Received] = field(default_factory=list)
    elsewhere: int = 0
    """Requests to where it redirects to."""

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(headers, await request.read()))
        if self.hangs:
            await asyncio.sleep(3600)
        return web.Response(status=self.status, headers=self.headers)

    async def secret_place(self, _: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    def types(self) -> list[str]:
        return [one.json["type"] for one in self.received]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[StubReceiver]:
    """It listens on this machine."""
    stub = StubReceiver()
    app = web.Application()
    app.router.add_post("/hook", stub.take)
    app.router.add_route("*", "/elsewhere", stub.secret_place)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield stub
    await runner.cleanup()
