"""A worker: the product's own engine, lease and client of Evolution, on ports that can be held.

Every call that leaves the engine is an ``Op``: it waits until the cluster settles it. What carries
it out (``do``) is one indivisible change of the world, as a request or a commit is.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from uuid import UUID

import httpx

from evosaga.events.append import Append, Appended
from evosaga.events.event_log import EventLog, Hold
from evosaga.events.model import Recorded
from evosaga.orchestrator.engine.engine import Engine
from evosaga.orchestrator.engine.lease import Lease
from evosaga.orchestrator.engine.state import State
from evosaga.sagas.whatsapp.evolution.answers import Answer
from evosaga.sagas.whatsapp.evolution.circuit_breaker import CircuitBreaker
from evosaga.sagas.whatsapp.evolution.client import EvolutionApi
from evosaga.sagas.whatsapp.evolution.transport import HttpTransport
from evosaga.sagas.whatsapp.ownership import KeyRing
from evosaga.sagas.whatsapp.services import Services
from evosaga.sagas.whatsapp.types import DEFAULT_SERVER
from tests.harness.simulation.database import CATALOGUE, at_once
from tests.harness.simulation.loop import ACTOR, Actor, Loop
from tests.harness.simulation.outside import GLOBAL_KEY

if TYPE_CHECKING:
    from tests.harness.simulation.cluster import Cluster

KEYS: Final = KeyRing(["a-secret-key-of-thirty-two-bytes-or-more"])
TTL: Final = 2.5


@dataclass(eq=False)
class Op:
    """A call that is out. ``about`` is the instance or saga it concerns."""

    kind: str
    actor: "Worker"
    do: Callable[[], Any]
    future: "asyncio.Future[Any]"
    about: str
    token: str = ""
    """The birthmark that a create gives."""
    late: bool = False
    """Whether its caller may be gone, or superseded, by the time it happens."""


class SparseLease(Lease):
    """The real lease without the beats between: it is as if one had just come, unless it slept."""

    def __init__(self, worker: str, loop: Loop) -> None:
        self._frozen: float | None = None
        self._loop = loop
        super().__init__(cast(Any, _Heard()), worker, ttl=TTL)
        self.beat_now()

    @property
    def _valid_until(self) -> float:
        return self._loop.now + TTL * 0.9 if self._frozen is None else self._frozen

    @_valid_until.setter
    def _valid_until(self, value: float) -> None:
        self._frozen = None if value > self._loop.now else value

    def fall_asleep(self) -> None:
        self._frozen = self._valid_until

    def is_over(self) -> bool:
        return self._loop.now >= self._valid_until

    def beat_now(self) -> None:
        """One beat of the real lease, which counts a new epoch if it was over."""
        at_once(self.beat())


class _Heard:
    """A pool that takes a heartbeat."""

    async def execute(self, *_: Any, **__: Any) -> None:
        return None


class Worker(Actor):
    """One process with everything that it alone has."""

    def __init__(self, name: str, cluster: "Cluster") -> None:
        super().__init__(name)
        self.cluster = cluster
        self.gone_at = 0.0
        """When it last gave a sign of life, if it is dead or asleep."""
        self.lease = SparseLease(name, cluster.loop)
        fence = self.lease.check if cluster.fenced else lambda: None
        if not cluster.fenced:
            self.lease.check = fence  # type: ignore[method-assign]
        self.api = _Api(self, fence)
        self.services = Services(
            servers={DEFAULT_SERVER: self.api},
            redis=cast(Any, _Redis(self)),
            http=cast(Any, None),
            keys=KEYS,
            create_deadline=cluster.deadline,
        )
        log = cast(EventLog, Log(self))
        self.engine = Engine(CATALOGUE, log, self.services, self.lease, capacity=100)
        self.context: Context = copy_context()
        self.context.run(ACTOR.set, self)

    def runs(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something as this process."""
        return self.context.run(function, *args)

    async def op(
        self, kind: str, do: Callable[[], Any], about: object = "", token: str = ""
    ) -> Any:
        """Wait until the cluster lets it happen, and for what it answers."""
        future = self.cluster.loop.create_future()
        self.cluster.pending.append(Op(kind, self, do, future, str(about), token))
        return await future


class Log:
    """``EventLog`` as the engine uses it."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._db = worker, worker.cluster.database

    async def append(self, append: Append[State]) -> Appended[State]:
        kind = "append" if append.join is None else "join"
        done: Appended[State] = await self._worker.op(
            kind, lambda: self._db.commit(append), append.saga_id
        )
        return done

    async def hold(self, hold: Hold) -> Literal["held", "moved", "lost"]:
        said: Literal["held", "moved", "lost"] = await self._worker.op(
            "hold", lambda: self._db.hold(hold), hold.saga_id
        )
        return said

    async def read(self, saga_id: UUID) -> list[Recorded]:
        read: list[Recorded] = await self._worker.op(
            "read", lambda: [*self._db.events.get(saga_id, [])], saga_id
        )
        return read

    async def now(self) -> datetime:
        return self._db.now()

    async def set_aside(self, saga_id: UUID, sequence: int, *_: object) -> None:
        """That a worker stumbled is a broken law here, so nothing needs to come of it."""


class DirectLog(Log):
    """The same for those who steer: they are not what is explored, so nothing holds them up."""

    async def append(self, append: Append[State]) -> Appended[State]:
        return self._db.commit(append)

    async def read(self, saga_id: UUID) -> list[Recorded]:
        return [*self._db.events.get(saga_id, [])]

    async def read_many(self, saga_ids: Sequence[UUID]) -> dict[UUID, list[Recorded]]:
        return {saga_id: [*self._db.events[saga_id]] for saga_id in saga_ids}


class _Api(EvolutionApi):
    """The product's client; only the wire is replaced."""

    def __init__(self, worker: Worker, fence: Callable[[], None]) -> None:
        super().__init__("http://evolution", GLOBAL_KEY, before_send=fence)
        self._transport = _Wire(worker)
        clock = worker.cluster.loop.time
        self._breaker = CircuitBreaker("evolution", 64, clock=clock, chance=lambda: 0.5)


class _Wire(HttpTransport):
    """The cluster's Evolution instead of a server."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(GLOBAL_KEY)
        self._worker = worker

    async def send(self, request: httpx.Request, timeout: float, largest: int) -> Answer:
        method, path = request.method, request.url.raw_path.decode()
        key, body = request.headers["apikey"], json.loads(request.content or b"{}")
        kind = {"POST": "create", "DELETE": "delete"}.get(method, "look")
        about = body.get("instanceName") or path.rpartition("/")[2]
        token = body.get("token", key)
        if kind != "look":
            self._worker.cluster.asked(self._worker, kind, about, token)
        serve = self._worker.cluster.evolution.serve
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

    def __init__(self, worker: Worker) -> None:
        self._worker, self._redis = worker, worker.cluster.redis

    async def eval(self, script: str, count: int, *rest: str) -> Any:
        keys, arguments = rest[:count], rest[count:]
        return await self._worker.op(
            "redis", lambda: self._redis.eval(script, keys, arguments), keys[-1]
        )

    async def publish(self, channel: str, message: str) -> Any:
        return await self._worker.op("redis", lambda: self._redis.publish(channel, message))

    async def mget(self, *keys: str) -> Any:
        found = [self._redis.keys.get(key) for key in keys]
        return [value.encode() if value is not None else None for value in found]

    async def exists(self, key: str) -> int:
        return int(key in self._redis.keys)
