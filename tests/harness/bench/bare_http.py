"""``python -m tests.harness.bench.bare_http``: uvicorn around two lines, what an answer costs at
least."""

import asyncio
import socket
from typing import Any

import uvicorn


async def answer(_scope: Any, receive: Any, send: Any) -> None:
    """The same few bytes to everybody, after the body has been read."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"18")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"status":"alive"}'})


async def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    named = socket.socket(listener.family, listener.type, socket.IPPROTO_TCP, listener.detach())
    named.setblocking(False)
    print(named.getsockname()[1], flush=True)
    config = uvicorn.Config(answer, log_config=None, access_log=False, lifespan="off", http="h11")
    await uvicorn.Server(config).serve([named])


if __name__ == "__main__":
    asyncio.run(main())
