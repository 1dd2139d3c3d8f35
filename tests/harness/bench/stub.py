"""A stub of Evolution that answers at once: what is measured is the orchestrator, not Evolution.

Its own process, on a plain asyncio protocol, since every microsecond it takes is taken from
whatever is being measured. It keeps the tokens it has seen, so that looks tell the truth, and
counts creates by name, so that repeated effects can be counted.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Final

KEY: Final = "bench"

_instances: dict[str, str] = {}
_names: dict[str, str] = {}  # by token, so that a look takes no longer when there are many
_creates: Counter[str] = Counter()
_calls: Counter[str] = Counter()
_silent: set[str] = set()  # operations that have their effect, but are not answered


def _answer(method: str, path: str, key: str, body: bytes) -> tuple[int, object]:
    path, _, _query = path.partition("?")
    operation, _, name = path.removeprefix("/instance/").partition("/")
    _calls[operation] += 1
    match method, operation:
        case "POST", "create":
            wanted = json.loads(body)
            name, token = wanted["instanceName"], wanted["token"]
            _creates[name] += 1
            if name in _instances:
                return 403, _error(f'This name "{name}" is already in use.')
            _instances[name], _names[token] = token, name
            about = {"instanceName": name, "instanceId": name, "status": "close"}
            return 201, {"instance": about, "hash": token}
        case "GET", "connectionState":
            if name not in _instances:
                return 404, _error(f'The "{name}" instance does not exist')
            if key != _instances[name]:
                return 401, _error("Unauthorized")
            return 200, {"instance": {"instanceName": name, "state": "close"}}
        case "GET", "fetchInstances":
            found = list(_instances) if key == KEY else [_names[key]] if key in _names else []
            rows = [
                {"name": name, "token": _instances[name], "connectionStatus": "close"}
                for name in found
            ]
            return (200, rows) if rows or key == KEY else (401, _error("Unauthorized"))
        case "DELETE", "delete":
            if _instances.get(name) == key:
                del _names[_instances.pop(name)]
                return 200, {"status": "SUCCESS"}
            return (401 if name in _instances else 404), _error("no")
        case "GET", "connect":
            return 200, {"count": 0}
        case "GET", "bench":
            repeated = sum(1 for count in _creates.values() if count > 1)
            return 200, {"instances": len(_instances), "repeated": repeated, "calls": _calls}
        case "POST", "silence":
            _silent.add(name)
            return 200, {}
        case "POST", "answer":
            _silent.clear()
            return 200, {}
        case "POST", "forget":
            for seen in (_instances, _names, _creates, _calls, _silent):
                seen.clear()
            return 200, {}
    return 404, _error(f"Cannot {method} {path}")


def _error(message: str) -> object:
    return {"status": 400, "error": "stub", "response": {"message": [message]}}


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            method, path, _ = first.split(" ", 2)
            status, answer = _answer(method, path, headers.get("apikey", ""), body)
            if path.removeprefix("/instance/") in _silent:
                continue
            said = json.dumps(answer).encode()
            self._transport.write(
                b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (status, len(said), said)
            )


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Whoever started us holds the other end of our stdin; when it goes, so do we.
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main())
