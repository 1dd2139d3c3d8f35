"""A worker of WhatsApp: the kit's, with the product's client of Evolution on a wire in memory."""

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import httpx

from evosaga.orchestrator.commands.testing.workers import Worker
from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.evolution.circuit_breaker import CircuitBreaker
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.transport import HttpTransport
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER
from tests.harness.simulation.outside import GLOBAL_KEY

if TYPE_CHECKING:
    from tests.harness.simulation.cluster import Cluster

KEYS: Final = KeyRing(["a-secret-key-of-thirty-two-bytes-or-more"])


def services_of(worker: Worker, cluster: "Cluster") -> Services:
    """What that worker's steps are handed."""
    fence = worker.lease.check if cluster.fenced else lambda: None
    return Services(
        servers={DEFAULT_SERVER: _Api(worker, cluster, fence)},
        redis=cast(Any, _Redis(worker, cluster)),
        http=cast(Any, None),
        keys=KEYS,
        create_deadline=cluster.deadline,
    )


class _Api(EvolutionApi):
    """The product's client; only the wire is replaced."""

    def __init__(self, worker: Worker, cluster: "Cluster", fence: Callable[[], None]) -> None:
        super().__init__("http://evolution", GLOBAL_KEY, before_send=fence)
        self._transport = _Wire(worker, cluster)
        clock = cluster.loop.time
        self._breaker = CircuitBreaker("evolution", 64, clock=clock, chance=lambda: 0.5)


class _Wire(HttpTransport):
    """The cluster's Evolution instead of a server."""

    def __init__(self, worker: Worker, cluster: "Cluster") -> None:
        super().__init__(GLOBAL_KEY)
        self._worker, self._cluster = worker, cluster

    async def send(self, request: httpx.Request, timeout: float, largest: int) -> Answer:
        method, path = request.method, request.url.raw_path.decode()
        key, body = request.headers["apikey"], json.loads(request.content or b"{}")
        kind = {"POST": "create", "DELETE": "delete"}.get(method, "look")
        about = body.get("instanceName") or path.rpartition("/")[2]
        token = body.get("token", key)
        if kind != "look":
            self._cluster.asked(self._worker, kind, about, token)
        serve = self._cluster.evolution.serve
        try:
            async with asyncio.timeout(timeout):
                told: Answer = await self._worker.op(
                    kind, lambda: serve(method, path, key, body), about, token
                )
                return told
        except TimeoutError:
            return Answer(0, None, "nothing in time")


class _Redis:
    """A client of the Redis in memory, as far as these steps use it."""

    def __init__(self, worker: Worker, cluster: "Cluster") -> None:
        self._worker, self._redis = worker, cluster.redis

    async def eval(self, script: str, count: int, *rest: str) -> Any:
        keys, arguments = rest[:count], rest[count:]
        return await self._worker.op(
            "redis", lambda: self._redis.eval(script, keys, arguments), keys[-1]
        )

    async def delete(self, key: str) -> Any:
        return await self._worker.op("redis", lambda: self._redis.delete(key), key)

    async def publish(self, channel: str, message: str) -> Any:
        return await self._worker.op("redis", lambda: self._redis.publish(channel, message))

    async def mget(self, *keys: str) -> Any:
        found = [self._redis.keys.get(key) for key in keys]
        return [value.encode() if value is not None else None for value in found]

    async def exists(self, key: str) -> int:
        return int(key in self._redis.keys)
