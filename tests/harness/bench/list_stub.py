"""A stub of several Evolution servers with very many instances: the lists, and memory's answers.

Its own process. The instances of server ``s`` of ``m`` are those with ``n % m == s``; ids are those
that Postgres makes of ``md5(n::text)::uuid``, tokens the birthmarks that a create would have given.
"""

import asyncio
import hashlib
import sys
import uuid
from typing import Final

from aiohttp import web

from evosaga.sagas.whatsapp.ownership import KeyRing
from tests.harness.bench.rig import SECRET

KEYS: Final = KeyRing([SECRET])
_ELEMENT: Final = (
    '{"id":"%s","name":"wa-%s","connectionStatus":"open","ownerJid":"55%011d@s.whatsapp.net",'
    '"profileName":"Cl\u00ednica %d","profilePicUrl":null,"integration":"WHATSAPP-BAILEYS",'
    '"number":null,"businessId":null,"token":"%s","clientName":"evolution_exchange",'
    '"disconnectionReasonCode":null,"disconnectionObject":null,"disconnectionAt":null,'
    '"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z","Chatwoot":null,'
    '"Proxy":null,"Rabbitmq":null,"Nats":null,"Sqs":null,"Websocket":null,"Setting":{"id":"%s",'
    '"rejectCall":false,"msgCall":"","groupsIgnore":false,"alwaysOnline":false,'
    '"readMessages":false,"readStatus":false,"syncFullHistory":false,"wavoipToken":"",'
    '"createdAt":"2026-01-01T00:00:00.000Z","updatedAt":"2026-01-01T00:00:00.000Z"},'
    '"_count":{"Message":0,"Contact":0,"Chat":0}}'
)


def id_of(number: int) -> uuid.UUID:
    return uuid.UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest())


def element(number: int) -> str:
    id_ = id_of(number)
    token = KEYS.instance_token(id_, KEYS.current)
    return _ELEMENT % (id_, id_, number, number, token, id_)


async def _list(request: web.Request) -> web.StreamResponse:
    server, of = int(request.match_info["server"]), request.app[_OF]
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    begun = b"["
    for at in range(server, request.app[_COUNT], of * 100):
        page = range(at, min(at + of * 100, request.app[_COUNT]), of)
        await response.write(begun + ",".join(map(element, page)).encode())
        begun = b","
    await response.write(b"]" if begun == b"," else b"[]")
    return response


async def _state(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    return web.json_response({"instance": {"instanceName": name, "state": "open"}})


async def _webhook(_: web.Request) -> web.Response:
    return web.json_response(None)


_COUNT: Final = web.AppKey("count", int)
_OF: Final = web.AppKey("of", int)


async def _main(count: int, of: int) -> None:
    app = web.Application()
    app[_COUNT], app[_OF] = count, of
    app.router.add_get("/{server}/instance/fetchInstances", _list)
    app.router.add_get("/{server}/instance/connectionState/{name}", _state)
    app.router.add_get("/{server}/webhook/find/{name}", _webhook)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    # Whoever started us holds the other end of our stdin; when it goes, so do we.
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
