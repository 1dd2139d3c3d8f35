"""Sends an answer: whole, spoiled, cut in the middle, or never."""

import asyncio
import json
import socket
import struct
from dataclasses import replace
from http.client import responses
from typing import Any
from uuid import uuid4

from aiohttp import web

from evosaga.orchestrator.local.evolution.faults import Armed
from evosaga.orchestrator.local.evolution.guards import REASONS, Reply, error, failed_with_200

_LINGER_NOT = struct.pack("ii", 1, 0)
_HTML = """<html>
<head><title>{status} {reason}</title></head>
<body>
<center><h1>{status} {reason}</h1></center>
<hr><center>nginx</center>
</body>
</html>
"""


def refusal(armed: Armed) -> Reply:
    """The answer of a fault that strikes before anything is done."""
    given = armed.parameters
    match armed.mode:
        case "5xx_before":
            return error(given["status"], "Internal server error")
        case "reject":
            return error(given["status"], [given["message"]])
        case "429":
            reply = error(429, ["Too many requests"])
            return replace(reply, headers=_retry_after(given["retry_after"]))
        case "proxy":
            return _proxys(given["status"], given["body"], given["retry_after"])
        case "no_key":
            return error(403, ["Missing global api key"])
        case "redirect":
            return Reply(given["status"], b"", {"Location": given["location"]})
        case "licence":
            url = given["register_url"]
            said = {"error": "service not activated", "code": "LICENSE_REQUIRED"}
            return Reply(503, {**said, "register_url": url})
        case "cors":
            return error(500, "Not allowed by CORS")
        case "ok200_error":
            return failed_with_200()
        case "refuse":
            return Reply(0, cut_after=0)
        case "hang_before":
            return Reply(0, hang=True)
        case _:
            raise AssertionError(f"{armed.mode} does not strike before")


def _retry_after(wanted: object) -> dict[str, str]:
    if wanted is None:
        return {}
    text = f"{wanted:g}" if isinstance(wanted, int | float) else str(wanted)
    return {"Retry-After": text}


def _proxys(status: int, kind: str, retry_after: object) -> Reply:
    """A proxy's own error answer."""
    later = _retry_after(retry_after)
    match kind:
        case "html":
            page = html(status)
            return replace(page, headers={**page.headers, **later})
        case "json":
            return Reply(status, {"message": "no Route matched with those values"}, later)
        case "text":
            plain = {"Content-Type": "text/plain"}
            return Reply(status, f"{status} page not found\n".encode(), {**plain, **later})
    return Reply(status, b"", later)


def spoiled(armed: Armed, reply: Reply) -> Reply:
    """The answer of a fault that strikes after everything is done."""
    given = armed.parameters
    match armed.mode:
        case "slow_after":
            return reply
        case "5xx_after":
            return error(given["status"], "Internal server error")
        case "html502":
            return html(given["status"])
        case "cut":
            return replace(reply, cut_after=int(given["bytes"]))
        case "hang_after":
            return replace(reply, hang=True)
        case "trunc":
            whole = payload(reply)
            size = len(whole) // 2 if given["bytes"] is None else int(given["bytes"])
            return replace(reply, body=whole[:size])
        case "huge":
            return replace(reply, body=_padded(reply.body, int(given["size"])))
        case "wrong_body":
            body = given["body"]
            return replace(reply, body=_somebody_elses() if body is None else body)
        case _:
            raise AssertionError(f"{armed.mode} does not strike after")


def lost(armed: Armed) -> Reply:
    """The answer to a request that will be done later."""
    match armed.parameters["reply"]:
        case "cut":
            return Reply(0, cut_after=0)
        case "hang":
            return Reply(0, hang=True)
        case _:
            return html(504)


def html(status: int) -> Reply:
    reason = REASONS.get(status) or responses.get(status, "Gateway Time-out")
    page = _HTML.format(status=status, reason=reason).encode()
    return Reply(status, page, {"Content-Type": "text/html"})


def payload(reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    try:
        return json.dumps(reply.body, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair is escaped, as JSON.stringify does it
        return json.dumps(reply.body, separators=(",", ":")).encode()


async def send(request: web.BaseRequest, reply: Reply, stopping: asyncio.Event) -> web.Response:
    """The response for aiohttp to send, or one whose connection is closed."""
    if reply.hang:
        await _hang(request, stopping)
        drop(request.transport)
        return web.Response()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Access-Control-Allow-Origin": "*",
        "X-Powered-By": "Express",
        "Keep-Alive": "timeout=5",
        **reply.headers,
    }
    raw = payload(reply)
    if reply.cut_after is not None:
        _cut(request, reply, raw, headers)
        return web.Response()
    return web.Response(body=raw, status=reply.status, headers=headers)


def drop(transport: asyncio.Transport | None) -> None:
    """Reset the connection: no FIN, no partial bytes."""
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


def _cut(request: web.BaseRequest, reply: Reply, raw: bytes, headers: dict[str, str]) -> None:
    size = reply.cut_after or 0
    transport = request.transport
    if size == 0 or transport is None:
        return drop(request.transport)
    lines = {**headers, "Content-Length": str(len(raw))}
    head = f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'OK')}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in lines.items()
    )
    transport.write((head.encode() + b"\r\n" + raw)[:size])
    transport.close()  # not a reset, which could overtake the bytes
    return None


async def _hang(request: web.BaseRequest, stopping: asyncio.Event) -> None:
    """Wait until the client gives up or the server stops."""
    while request.transport is not None and not stopping.is_set():
        try:
            await asyncio.wait_for(stopping.wait(), 0.1)
        except TimeoutError:
            continue


def _padded(body: object, size: int) -> object:
    padding = "x" * size
    if isinstance(body, dict):
        return {**body, "padding": padding}
    if isinstance(body, list):
        return [*body, {"padding": padding}]
    return {"body": body, "padding": padding}


def _somebody_elses() -> dict[str, Any]:
    other = {"instanceName": "another-instance", "instanceId": str(uuid4()), "status": "open"}
    return {"instance": other, "hash": str(uuid4()).upper()}
